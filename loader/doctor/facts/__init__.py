"""What is measured of episodes, many at a time: small arrays that say enough to judge them."""

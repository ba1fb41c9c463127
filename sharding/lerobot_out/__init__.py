"""LeRobot data sets, written from the episodes of any source: v2.1 and v3.0."""

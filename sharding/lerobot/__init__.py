"""LeRobot data sets streamed where they are: the rows and packets of their episodes, indexed as shards."""

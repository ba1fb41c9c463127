"""What LeRobot data sets say of themselves: columns, episodes, tasks, splits and statistics, kept as arrays."""

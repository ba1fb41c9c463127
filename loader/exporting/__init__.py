"""Episodes out: any dataset written as data sets of others."""

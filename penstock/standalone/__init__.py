"""The composition for one machine: a supervisor and three processes on one data directory."""

"""Summary -> tables, figures, a report: pure functions that read no run and train nothing."""

"""What others read the tables with: views for analysts, a data dictionary, a Delta log."""

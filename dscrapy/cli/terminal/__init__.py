"""What people see: tables, log lines, help."""

"""Running a method over measurements, and what that leaves behind."""

"""What runs the work of the stages, what people see of it, and its errors."""

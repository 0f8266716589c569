"""What people look at: metrics, pictures, reports."""

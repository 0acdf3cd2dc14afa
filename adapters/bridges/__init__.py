"""Between the adapter and what is around it: the pure form, and torch's schedulers."""

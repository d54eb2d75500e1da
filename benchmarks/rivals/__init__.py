"""BitingLip beside other task queues: `python -m benchmarks.rivals --rivals FOLDER`."""

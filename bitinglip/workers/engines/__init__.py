"""The engine process: the only home of torch, reached as a process and never by import."""

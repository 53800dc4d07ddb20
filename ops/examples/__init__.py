"""Programs that show how others plug statecore in. Each is runnable, and each checks what it shows."""

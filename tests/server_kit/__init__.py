"""What the server's tests stand on: a data plane that only notes, a front-end that sends bytes."""

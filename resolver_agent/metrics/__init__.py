"""What monitoring systems read: metrics in Prometheus' text format, and health over HTTP."""

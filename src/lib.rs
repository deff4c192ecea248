//! Microsecond state machine replication.

//! The core on virtual time: a scripted peer, no threads, no sleeping.

//! The guide: one page for each subject. Each page takes five minutes.
//!
//! | | |
//! |---|---|
//! | [`connecting`] | parameters, URLs, TLS, credentials, several brokers |
//! | [`routing`] | exchanges, queues and bindings |
//! | [`publishing`] | properties, mandatory messages, confirms in three styles, backpressure |
//! | [`consuming`] | callbacks, iterators, prefetch, acknowledgements, cancelling |
//! | [`threads`] | which handle goes where, worker pools, shutting down |
//! | [`errors`] | the errors, the end that each means, and how to react |
//! | [`timeouts`] | every deadline, and heartbeats |
//! | [`recovery`] | the connection breaks: recovery, and its limits |
//! | [`one_thread`] | several channels and connections in one thread |
//! | [`rpc`] | requests and replies with direct reply-to |
//! | [`queue_types`] | quorum queues, streams and other arguments |
//! | [`testing`] | how to test a program that uses cony |
//! | [`faq`] | short answers |
//!
//! Programs that almost every user of RabbitMQ writes, each with a complete example:
//!
//! | | |
//! |---|---|
//! | [`worker`] | a worker for production: threads, signals, dead letters, panics, lost connections |
//! | [`retry`] | trying a failed message again after a delay |
//! | [`pipeline`] | from queue to queue without loss |
//! | [`certainty`] | a file, and which of its lines have arrived |
//! | [`metrics`] | numbers to watch, once a second |
//!
//! If you know another client: [`from_amiquip`], [`from_java`]; pika has [a page of its
//! own][from-pika].
//!
//! The pages are the files in `docs/guide`. Their code runs as tests, against a real RabbitMQ.
//!
//! # The threads, and the path of a message
//!
#![doc = include_str!("../docs/threads.svg")]
//!
//! [from-pika]: https://docs.rs/crate/cony/latest/source/docs/from-pika.md

/// Makes a module for each file. The links between files become links between modules: if a link
/// has two definitions, rustdoc takes the first one.
macro_rules! pages {
    ($($name:ident: $file:literal,)*) => {
        $(
            /// [connecting]: crate::guide::connecting
            /// [routing]: crate::guide::routing
            /// [publishing]: crate::guide::publishing
            /// [consuming]: crate::guide::consuming
            /// [threads]: crate::guide::threads
            /// [errors]: crate::guide::errors
            /// [timeouts]: crate::guide::timeouts
            /// [recovery]: crate::guide::recovery
            /// [one-thread]: crate::guide::one_thread
            /// [rpc]: crate::guide::rpc
            /// [queue-types]: crate::guide::queue_types
            /// [testing]: crate::guide::testing
            /// [faq]: crate::guide::faq
            /// [worker]: crate::guide::worker
            /// [retry]: crate::guide::retry
            /// [pipeline-page]: crate::guide::pipeline
            /// [certainty]: crate::guide::certainty
            /// [metrics-page]: crate::guide::metrics
            /// [from-pika]: https://docs.rs/crate/cony/latest/source/docs/from-pika.md
            /// [security]: https://docs.rs/crate/cony/latest/source/docs/security.md
            /// [performance]: https://docs.rs/crate/cony/latest/source/docs/performance.md
            /// [reliable_worker]: https://docs.rs/crate/cony/latest/source/examples/reliable_worker.rs
            /// [delayed_retry]: https://docs.rs/crate/cony/latest/source/examples/delayed_retry.rs
            /// [pipeline]: https://docs.rs/crate/cony/latest/source/examples/pipeline.rs
            /// [publish_lines]: https://docs.rs/crate/cony/latest/source/examples/publish_lines.rs
            /// [publish_file]: https://docs.rs/crate/cony/latest/source/examples/publish_file.rs
            /// [metrics]: https://docs.rs/crate/cony/latest/source/examples/metrics.rs
            ///
            #[doc = include_str!(concat!("../docs/guide/", $file))]
            pub mod $name {}
        )*
    };
}

pages! {
    connecting: "connecting.md",
    routing: "routing.md",
    publishing: "publishing.md",
    consuming: "consuming.md",
    threads: "threads.md",
    errors: "errors.md",
    timeouts: "timeouts.md",
    recovery: "recovery.md",
    one_thread: "one-thread.md",
    rpc: "rpc.md",
    queue_types: "queue-types.md",
    testing: "testing.md",
    faq: "faq.md",
    worker: "worker.md",
    retry: "retry.md",
    pipeline: "pipeline.md",
    certainty: "certainty.md",
    metrics: "metrics.md",
    from_amiquip: "from-amiquip.md",
    from_java: "from-java.md",
}

//! The guide: one page for each subject, each read in five minutes.
//!
//! | | |
//! |---|---|
//! | [`connecting`] | parameters, URLs, TLS, credentials, several brokers |
//! | [`routing`] | exchanges, queues and bindings |
//! | [`publishing`] | properties, mandatory messages, confirms in three styles, backpressure |
//! | [`consuming`] | callbacks, iterators, prefetch, acknowledgements, cancelling |
//! | [`threads`] | which handle goes where, worker pools, shutting down |
//! | [`errors`] | what is dead after which error, and what to do about it |
//! | [`timeouts`] | every deadline, and heartbeats |
//! | [`one_thread`] | several channels and connections in one thread |
//! | [`rpc`] | questions and answers with direct reply-to |
//! | [`queue_types`] | quorum queues, streams and other arguments |
//! | [`testing`] | testing a program that uses cony |
//! | [`faq`] | short answers |
//! | [`from_amiquip`], [`from_java`] | for those who know another client; pika has [a page of its own][from-pika] |
//!
//! The pages are the files in `docs/guide`, and their code runs in the tests.
//!
//! # The threads, and a message's way
//!
#![doc = include_str!("../docs/threads.svg")]
//!
//! [from-pika]: https://docs.rs/crate/cony/latest/source/docs/from-pika.md

/// A module for each file. The links between files become links between modules: of two
/// definitions of a link the first one counts.
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
            /// [one-thread]: crate::guide::one_thread
            /// [rpc]: crate::guide::rpc
            /// [queue-types]: crate::guide::queue_types
            /// [testing]: crate::guide::testing
            /// [faq]: crate::guide::faq
            /// [from-pika]: https://docs.rs/crate/cony/latest/source/docs/from-pika.md
            /// [security]: https://docs.rs/crate/cony/latest/source/docs/security.md
            /// [performance]: https://docs.rs/crate/cony/latest/source/docs/performance.md
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
    one_thread: "one-thread.md",
    rpc: "rpc.md",
    queue_types: "queue-types.md",
    testing: "testing.md",
    faq: "faq.md",
    from_amiquip: "from-amiquip.md",
    from_java: "from-java.md",
}

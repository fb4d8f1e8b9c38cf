//! The examples, run as a user runs them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;

use crate::support::{channel, run, unique};

/// An example's program, as the source is now: a test run of its own builds no examples.
fn example(name: &str) -> Command {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--examples"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success());
    });
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples");
    path.push(name);
    Command::new(path)
}

#[test]
fn hello_world_says_hello() {
    assert_eq!(
        run(&mut example("hello_world"), b""),
        b"got: Hello, world!\n"
    );
}

#[test]
fn publish_and_get_pass_a_message_on() {
    let queue = unique("example");
    run(
        example("publish").args([&queue, "from the command line"]),
        b"",
    );
    run(example("publish").arg(&queue), b"from standard input");
    run(
        example("publish").args([&queue, "-", &crate::support::url()]),
        b"with a URL",
    );
    assert_eq!(
        run(example("get").arg(&queue), b""),
        b"from the command line"
    );
    assert_eq!(run(example("get").arg(&queue), b""), b"from standard input");
    assert_eq!(
        run(example("get").args([&queue, &crate::support::url()]), b""),
        b"with a URL"
    );
    let empty = example("get").arg(&queue).output().unwrap();
    assert_eq!(empty.status.code(), Some(1));
    let usage = example("get").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    channel().queue_delete(&queue).unwrap();
}

#[test]
fn worker_works_until_it_is_told_to_stop() {
    let queue = unique("worker");
    for body in ["one", "two", "stop"] {
        run(example("publish").args([&queue, body]), b"");
    }
    let output = run(example("worker").arg(&queue), b"");
    let expected = "working on: one\nworking on: two\nworking on: stop\nstopped\n";
    assert_eq!(String::from_utf8(output).unwrap(), expected);
    assert_eq!(channel().queue_delete(&queue).unwrap(), 0);
}

#[test]
fn an_example_without_a_broker_says_what_is_wrong() {
    let output = example("hello_world")
        .env("AMQP_URL", "amqp://127.0.0.1:1/")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("is the broker running"), "{said}");
}

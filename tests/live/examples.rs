//! The examples, run as a user runs them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;

use crate::support::{channel, run, unique, variable};

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

/// What `perf` says at the end, as JSON; the names have no need of escapes.
fn measured(arguments: &[&str]) -> String {
    let output = run(example("perf").args(arguments), b"");
    let line = String::from_utf8(output).unwrap();
    assert!(line.starts_with("{\"client\":\"cony\","), "{line}");
    assert!(line.ends_with("}\n"), "{line}");
    line
}

/// The number that JSON has under this name.
fn figure(json: &str, name: &str) -> f64 {
    let (_, rest) = json.split_once(&format!("\"{name}\":")).unwrap();
    rest.split([',', '}']).next().unwrap().parse().unwrap()
}

#[test]
fn perf_measures_every_scenario() {
    for scenario in [
        "publish",
        "publish-confirm-window",
        "publish-confirm-each",
        "consume-noack",
        "consume-ack",
        "get",
        "rpc",
    ] {
        let json = measured(&[scenario, "--messages", "300", "--size", "1000"]);
        assert!(json.contains(&format!("\"scenario\":\"{scenario}\"")));
        assert_eq!(figure(&json, "messages"), 300.0, "{json}");
        assert_eq!(figure(&json, "size"), 1000.0, "{json}");
        for name in ["seconds", "max_rss_kb", "nvcsw"] {
            assert!(figure(&json, name) > 0.0, "{name} of {json}");
        }
    }
}

#[test]
fn perf_adds_up_what_several_connections_and_channels_do() {
    let several = ["--connections", "2", "--channels", "3", "--messages", "100"];
    for scenario in ["publish-confirm-window", "consume-ack"] {
        let json = measured(&[&[scenario, "--persistent"], several.as_slice()].concat());
        assert_eq!(figure(&json, "messages"), 600.0, "{json}");
    }
}

#[test]
fn perf_runs_for_a_time_and_feeds_those_who_consume() {
    for scenario in ["publish", "consume-noack", "consume-ack", "get"] {
        let json = measured(&[scenario, "--seconds", "1", "--size", "200"]);
        assert!(figure(&json, "messages") > 0.0, "{json}");
        assert!(figure(&json, "seconds") >= 1.0, "{json}");
    }
}

#[test]
fn perf_speaks_tls_if_the_url_says_so() {
    let url = variable("CONY_BROKER_TLS_URL");
    let output = run(
        example("perf")
            .args(["publish-confirm-each", "--messages", "20", "--url", &url])
            .env("SSL_CERT_FILE", variable("CONY_BROKER_CA")),
        b"",
    );
    assert_eq!(
        figure(&String::from_utf8(output).unwrap(), "messages"),
        20.0
    );
}

#[test]
fn perf_explains_its_command_line() {
    let help = run(example("perf").arg("--help"), b"");
    assert!(String::from_utf8(help).unwrap().contains("--messages N"));
    for (arguments, said) in [
        (&["--size", "16"][..], "which scenario"),
        (&["consume"], "'consume'"),
        (&["get", "--size", "big"], "--size needs a number"),
        (&["get", "--url"], "--url needs a value"),
        (&["get", "--channels", "0"], "at least one"),
    ] {
        let output = example("perf").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let problem = String::from_utf8(output.stderr).unwrap();
        assert!(problem.contains(said), "{problem}");
    }
}

#[test]
fn event_loop_squares_what_its_timer_produces() {
    let output = run(&mut example("event_loop"), b"");
    let expected = "1 x 1 = 1\n2 x 2 = 4\n3 x 3 = 9\n4 x 4 = 16\n5 x 5 = 25\ndone\n";
    assert_eq!(String::from_utf8(output).unwrap(), expected);
}

#[test]
fn select_waits_for_everything_at_once() {
    let output = String::from_utf8(run(&mut example("select"), b"")).unwrap();
    let mut lines: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    let audit = ["audit: sold a book", "audit: sold a lamp"];
    assert_eq!(
        lines,
        [audit[0], audit[1], "order: a book", "order: a lamp"]
    );
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

//! The examples, run as a user runs them.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::mpsc::{Receiver, channel as lines};
use std::thread;

use cony::{BlockingChannel, DeliveryMode};

use crate::support::{
    PATIENCE, await_ready, channel, exclusive_queue, get, ready, run, unique, until, url, variable,
};

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

/// What an example prints that is to end without being told to.
fn output(name: &str, arguments: &[&str]) -> String {
    let lines = Running::start(name, arguments).stop();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// An example that runs until its input ends.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let mut child = example(name)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (line, lines) = lines();
        // Ends with the child.
        thread::spawn(move || {
            let mut came = output.lines().map_while(Result::ok);
            came.try_for_each(|came| line.send(came))
        });
        Self { child, lines }
    }

    /// Waits until it says that it waits.
    fn waiting(name: &str, arguments: &[&str]) -> Self {
        let running = Self::start(name, arguments);
        let line = running.line();
        assert!(line.starts_with("waiting for"), "{line}");
        running
    }

    /// Its next line.
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    /// Ends its input. What it still says, now that it ends well.
    fn stop(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        let mut status = None;
        until("the end of the example", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success());
        std::mem::replace(&mut self.lines, lines().1)
            .iter()
            .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A channel, when this queue that an example declares is gone.
fn without(queue: &str) -> BlockingChannel {
    let channel = channel();
    channel.queue_delete(queue).unwrap();
    channel
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
        example("publish").args([&queue, "-", &url()]),
        b"with a URL",
    );
    assert_eq!(
        run(example("get").arg(&queue), b""),
        b"from the command line"
    );
    assert_eq!(run(example("get").arg(&queue), b""), b"from standard input");
    assert_eq!(
        run(example("get").args([&queue, &url()]), b""),
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
fn tutorial_1_passes_a_greeting_on() {
    let channel = without("tutorial.hello");
    let receiver = Running::waiting("tutorial_1_receive", &[]);
    assert_eq!(output("tutorial_1_send", &[]), "sent 'Hello World!'\n");
    assert_eq!(receiver.line(), "received 'Hello World!'");
    assert!(receiver.stop().is_empty());
    channel.queue_delete("tutorial.hello").unwrap();
}

#[test]
fn tutorial_2_gives_each_worker_its_share() {
    let channel = without("tutorial.tasks");
    let workers = [(); 2].map(|()| Running::waiting("tutorial_2_worker", &[]));
    for task in ["one.", "two."] {
        let sent = output("tutorial_2_new_task", &[task]);
        assert_eq!(sent, format!("sent '{task}'\n"));
    }
    let mut received = workers.each_ref().map(Running::line);
    received.sort_unstable();
    assert_eq!(received, ["received 'one.'", "received 'two.'"]);
    for worker in workers {
        assert_eq!(worker.line(), "done");
        assert!(worker.stop().is_empty());
    }
    assert_eq!(channel.queue_delete("tutorial.tasks").unwrap(), 0);
}

#[test]
fn tutorial_3_tells_everybody() {
    let listeners = [(); 2].map(|()| Running::waiting("tutorial_3_receive_logs", &[]));
    let sent = output("tutorial_3_emit_log", &["so", "it", "goes"]);
    assert_eq!(sent, "sent 'so it goes'\n");
    for listener in listeners {
        assert_eq!(listener.line(), "so it goes");
        assert!(listener.stop().is_empty());
    }
    channel().exchange_delete("tutorial.logs").unwrap();
}

#[test]
fn tutorial_4_tells_who_asked_for_that_severity() {
    let listener = Running::waiting("tutorial_4_receive_logs_direct", &["warning", "error"]);
    for severity in ["info", "error"] {
        let sent = output("tutorial_4_emit_log_direct", &[severity, "a", "line"]);
        assert_eq!(sent, format!("sent {severity}: 'a line'\n"));
    }
    assert_eq!(listener.line(), "error: a line");
    assert!(listener.stop().is_empty());
    channel().exchange_delete("tutorial.direct_logs").unwrap();
}

#[test]
fn tutorial_5_tells_whose_pattern_fits() {
    let patterns = ["kern.*", "*.critical"];
    let listener = Running::waiting("tutorial_5_receive_logs_topic", &patterns);
    for topic in ["app.info", "kern.critical", "app.critical", "kern.info"] {
        let sent = output("tutorial_5_emit_log_topic", &[topic, "a", "line"]);
        assert_eq!(sent, format!("sent {topic}: 'a line'\n"));
    }
    for topic in ["kern.critical", "app.critical", "kern.info"] {
        assert_eq!(listener.line(), format!("{topic}: a line"));
    }
    assert!(listener.stop().is_empty());
    channel().exchange_delete("tutorial.topic_logs").unwrap();
}

#[test]
fn tutorial_6_asks_and_is_answered() {
    let channel = without("tutorial.fibonacci");
    let ask = |number| output("tutorial_6_rpc_client", &[number]);
    assert_eq!(ask("1"), "no server has ever run\n");
    let server = Running::waiting("tutorial_6_rpc_server", &[]);
    for (number, answer) in [("30", "832040"), ("x", "unknown"), ("187", "unknown")] {
        let said = format!("fibonacci({number}) is {answer}");
        assert_eq!(ask(number), format!("{said}\n"));
        assert_eq!(server.line(), said);
    }
    assert!(server.stop().is_empty());
    assert_eq!(channel.queue_delete("tutorial.fibonacci").unwrap(), 0);
}

#[test]
fn tutorial_7_confirms_in_three_ways() {
    let ways = ["one by one", "in batches", "all at the end"];
    let expected = ways.map(|way| format!("{way}: 250 messages are in the queue\n"));
    let said = output("tutorial_7_publisher_confirms", &["250"]);
    assert_eq!(said, expected.concat());
}

#[test]
fn connect_says_what_it_found() {
    let said = output("connect", &[&url()]);
    let expected = "connected to RabbitMQ\nheartbeat: 60s\nchannels: 2047\n\
                    publisher confirms: true\n";
    assert_eq!(said, expected);
}

#[test]
fn properties_says_much_of_its_messages() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.queue_bind(&queue, "amq.topic", &queue).unwrap();
    output("properties", &["amq.topic", &queue]);
    let order = get(&channel, &queue);
    assert_eq!(order.text().unwrap(), "{\"item\": 7}");
    let said = order.properties();
    assert_eq!(said.delivery_mode, Some(DeliveryMode::Persistent));
    assert_eq!(said.expiration, Some("60000".into()));
    for text in ["fragile", "a present"] {
        let note = get(&channel, &queue);
        assert_eq!(note.text().unwrap(), text);
        assert_eq!(note.properties().app_id.as_deref(), Some("shop"));
    }
}

#[test]
fn consume_ten_takes_ten() {
    let (channel, queue) = (channel(), unique("ten"));
    channel.queue_declare(&queue).unwrap();
    channel.confirm_delivery().unwrap();
    for number in 1..=12 {
        channel
            .basic_publish("", &queue, format!("number {number}"))
            .unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    let said = output("consume_ten", &[&queue]);
    let expected = |number| format!("{number}: number {number} (untyped)\n");
    assert_eq!(said, (1..=10).map(expected).collect::<String>());
    await_ready(&channel, &queue, 2);
    channel.queue_delete(&queue).unwrap();
}

#[test]
fn publish_file_publishes_every_line_and_shows_how_far_it_is() {
    let (channel, queue) = (channel(), unique("file"));
    let path = std::env::temp_dir().join(&queue);
    let line = |number| format!("line {number}\n");
    std::fs::write(&path, (0..500).map(line).collect::<String>()).unwrap();
    let mut publish = example("publish_file");
    let output = publish.arg(&queue).arg(&path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, format!("500 lines are in {queue}\n"));
    let progress = String::from_utf8(output.stderr).unwrap();
    for step in ["] 1 %", "] 50 %", "##] 100 %\n"] {
        assert!(progress.contains(step), "{step}: {progress}");
    }
    assert_eq!(get(&channel, &queue).text().unwrap(), "line 0");
    assert_eq!(channel.queue_delete(&queue).unwrap(), 499);
}

#[test]
fn worker_pool_finishes_what_it_has_begun_and_stops() {
    let (channel, queue) = (channel(), unique("pool"));
    channel.queue_declare(&queue).unwrap();
    for number in 0..20 {
        channel
            .basic_publish("", &queue, number.to_string())
            .unwrap();
    }
    let pool = Running::start("worker_pool", &[&queue, "3"]);
    let mut done: Vec<u32> = (0..20)
        .map(|_| {
            let line = pool.line();
            let (worker, number) = line.split_once(": ").unwrap();
            assert!(["worker 1", "worker 2", "worker 3"].contains(&worker));
            number.parse().unwrap()
        })
        .collect();
    done.sort_unstable();
    assert_eq!(done, (0..20).collect::<Vec<_>>());
    assert_eq!(pool.stop(), ["20 messages done"]);
    assert_eq!(ready(&channel, &queue), 0);
    channel.queue_delete(&queue).unwrap();
}

#[test]
fn schedule_does_each_thing_as_often_as_it_should() {
    let said = output("schedule", &[]);
    // The report may be heard between any two ticks.
    let (heard, ticks): (Vec<_>, Vec<_>) = said.lines().partition(|line| line.contains("heard"));
    assert_eq!(heard, ["heard: a report", "heard: good night"]);
    assert_eq!(ticks, ["tick 1", "tick 2", "tick 3", "done"]);
}

#[test]
fn several_brokers_finds_the_one_that_is_there() {
    let said = output("several_brokers", &["amqp://127.0.0.1:1", &url()]);
    assert!(said.starts_with("connected to "), "{said}");
    assert!(said.ends_with("working on channel 1\n"), "{said}");
    let mistaken = example("several_brokers")
        .arg("amqp:/oops")
        .output()
        .unwrap();
    assert!(!mistaken.status.success());
}

#[cfg(feature = "tls")]
#[test]
fn tls_client_certificate_needs_no_password() {
    let url = variable("CONY_BROKER_TLS_URL");
    let (_, rest) = url.rsplit_once(':').unwrap();
    let (port, _) = rest.split_once('/').unwrap();
    let files =
        ["CA", "CLIENT_CERT", "CLIENT_KEY"].map(|of| variable(&format!("CONY_BROKER_{of}")));
    let said = output(
        "tls_client_certificate",
        &["localhost", port, &files[0], &files[1], &files[2]],
    );
    assert_eq!(said, "connected with TLS, without a password\n");
}

#[test]
fn examples_that_need_arguments_say_which() {
    for name in [
        "publish_file",
        "several_brokers",
        "tls_client_certificate",
        "tutorial_4_receive_logs_direct",
        "tutorial_5_receive_logs_topic",
    ] {
        let output = example(name).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&format!("usage: {name}")), "{said}");
    }
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
    assert!(said.contains("the broker is running"), "{said}");
}

/// Rather than go to this machine, where nobody has sent it.
#[cfg(unix)]
#[test]
fn an_example_refuses_a_variable_that_is_no_text() {
    use std::os::unix::ffi::OsStringExt;

    let url = OsString::from_vec(b"amqp://user:hush\xff@broker.example/".to_vec());
    for name in ["hello_world", "perf"] {
        let output = example(name).env("AMQP_URL", &url).output().unwrap();
        assert!(!output.status.success(), "{name}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("AMQP_URL"), "{name}: {said}");
        assert!(said.contains("UTF-8"), "{name}: {said}");
        assert!(!said.contains("hush"), "{name}: {said}");
    }
}

//! Runs the examples as a user runs them.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::mpsc::{Receiver, channel as lines};
use std::thread;

use cony::{BlockingChannel, DeliveryMode, queue};

use crate::support::{
    PATIENCE, await_ready, channel, exclusive_queue, get, ready, run, unique, until, url, variable,
};

/// Returns a command that runs an example. The first call builds all examples, because a run of a
/// single test target does not.
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

/// Runs an example that ends by itself, and returns its output.
fn output(name: &str, arguments: &[&str]) -> String {
    let lines = Running::start(name, arguments).stop();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// An example that is running. Most of them run until their input ends.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(name: &str, arguments: &[&str]) -> Self {
        Self::of(example(name).args(arguments))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (line, lines) = lines();
        // The thread ends when the child closes its output.
        thread::spawn(move || {
            let mut printed = output.lines().map_while(Result::ok);
            printed.try_for_each(|text| line.send(text))
        });
        Self { child, lines }
    }

    /// Starts an example, and waits until it prints that it is waiting for messages.
    fn waiting(name: &str, arguments: &[&str]) -> Self {
        let running = Self::start(name, arguments);
        let line = running.line();
        assert!(line.starts_with("waiting for"), "{line}");
        running
    }

    /// Returns its next line.
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    /// Ends its input. Returns the lines that it still prints.
    fn stop(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        self.end()
    }

    /// Sends SIGTERM. Returns the lines that it still prints.
    fn terminate(self) -> Vec<String> {
        let kill = format!("kill -TERM {}", self.child.id());
        run(Command::new("sh").args(["-c", &kill]), b"");
        self.end()
    }

    /// Waits for its end, which must be a success.
    fn end(mut self) -> Vec<String> {
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

/// Deletes a queue that an example declares, and returns a channel.
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
fn get_prints_the_messages_that_publish_has_sent() {
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
fn worker_handles_messages_until_one_of_them_is_stop() {
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
fn tutorial_1_receives_the_greeting_that_was_sent() {
    let channel = without("tutorial.hello");
    let receiver = Running::waiting("tutorial_1_receive", &[]);
    assert_eq!(output("tutorial_1_send", &[]), "sent 'Hello World!'\n");
    assert_eq!(receiver.line(), "received 'Hello World!'");
    assert!(receiver.stop().is_empty());
    channel.queue_delete("tutorial.hello").unwrap();
}

#[test]
fn tutorial_2_gives_one_task_to_each_worker() {
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
fn tutorial_3_sends_each_line_to_all_receivers() {
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
fn tutorial_4_sends_a_line_to_the_receivers_of_its_severity() {
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
fn tutorial_5_sends_a_line_to_the_receivers_with_a_pattern_that_fits() {
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
fn tutorial_6_replies_to_each_request() {
    let channel = without("tutorial.fibonacci");
    let ask = |number| output("tutorial_6_rpc_client", &[number]);
    assert_eq!(ask("1"), "no server has run yet\n");
    let server = Running::waiting("tutorial_6_rpc_server", &[]);
    for (number, answer) in [("30", "832040"), ("x", "unknown"), ("187", "unknown")] {
        let printed = format!("fibonacci({number}) is {answer}");
        assert_eq!(ask(number), format!("{printed}\n"));
        assert_eq!(server.line(), printed);
    }
    assert!(server.stop().is_empty());
    assert_eq!(channel.queue_delete("tutorial.fibonacci").unwrap(), 0);
}

#[test]
fn tutorial_7_confirms_all_messages_in_three_ways() {
    let ways = ["one by one", "in batches", "all at the end"];
    let expected = ways.map(|way| format!("{way}: 250 messages are in the queue\n"));
    let printed = output("tutorial_7_publisher_confirms", &["250"]);
    assert_eq!(printed, expected.concat());
}

#[test]
fn connect_prints_the_product_and_the_agreed_limits() {
    let printed = output("connect", &[&url()]);
    let expected = "connected to RabbitMQ\nheartbeat: 10s\nchannels: 2047\n\
                    publisher confirms: true\n";
    assert_eq!(printed, expected);
}

#[test]
fn properties_sets_the_properties_of_its_messages() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.queue_bind(&queue, "amq.topic", &queue).unwrap();
    output("properties", &["amq.topic", &queue]);
    let order = get(&channel, &queue);
    assert_eq!(order.text().unwrap(), "{\"item\": 7}");
    let properties = order.properties();
    assert_eq!(properties.delivery_mode, Some(DeliveryMode::Persistent));
    assert_eq!(properties.expiration, Some("60000".into()));
    for text in ["fragile", "a present"] {
        let note = get(&channel, &queue);
        assert_eq!(note.text().unwrap(), text);
        assert_eq!(note.properties().app_id.as_deref(), Some("shop"));
    }
}

#[test]
fn consume_ten_leaves_the_eleventh_message_in_the_queue() {
    let (channel, queue) = (channel(), unique("ten"));
    channel.queue_declare(&queue).unwrap();
    channel.confirm_delivery().unwrap();
    for number in 1..=12 {
        channel
            .basic_publish("", &queue, format!("number {number}"))
            .unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    let printed = output("consume_ten", &[&queue]);
    let expected = |number| format!("{number}: number {number} (untyped)\n");
    assert_eq!(printed, (1..=10).map(expected).collect::<String>());
    await_ready(&channel, &queue, 2);
    channel.queue_delete(&queue).unwrap();
}

#[test]
fn publish_file_publishes_every_line_and_shows_the_progress() {
    let (channel, queue) = (channel(), unique("file"));
    let path = std::env::temp_dir().join(&queue);
    let line = |number| format!("line {number}\n");
    std::fs::write(&path, (0..500).map(line).collect::<String>()).unwrap();
    let mut publish = example("publish_file");
    let output = publish.arg(&queue).arg(&path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, format!("500 lines are in {queue}\n"));
    let progress = String::from_utf8(output.stderr).unwrap();
    for step in ["] 1 %", "] 50 %", "##] 100 %\n"] {
        assert!(progress.contains(step), "{step}: {progress}");
    }
    assert_eq!(get(&channel, &queue).text().unwrap(), "line 0");
    assert_eq!(channel.queue_delete(&queue).unwrap(), 499);
}

#[test]
fn worker_pool_handles_every_message_and_stops_when_its_input_ends() {
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

/// Has an operator close the connection of this name.
fn close_connection(name: &str) {
    let ctl = variable("CONY_BROKER_CTL");
    let list = ["-q", "list_connections", "pid", "client_properties"];
    let listed = String::from_utf8(run(Command::new(&ctl).args(list), b"")).unwrap();
    let line = listed.lines().find(|line| line.contains(name)).unwrap();
    let (pid, _) = line.split_once('\t').unwrap();
    let close = ["close_connection", pid, "tested"];
    run(Command::new(&ctl).args(close), b"");
}

/// Publishes these messages to an existing queue, and waits until they are in it.
fn publish_all<'a>(channel: &BlockingChannel, queue: &str, bodies: impl Iterator<Item = &'a str>) {
    channel.confirm_delivery().unwrap();
    for body in bodies {
        channel.basic_publish("", queue, body).unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
}

#[test]
fn reliable_worker_outlives_failures_panics_and_its_connection_until_a_signal_stops_it() {
    let (channel, queue) = (channel(), unique("reliable"));
    let dead = format!("{queue}.dead");
    let worker = Running::start("reliable_worker", &[&queue]);
    assert_eq!(worker.line(), "waiting for the broker");
    assert_eq!(worker.line(), format!("waiting for messages in {queue}"));
    publish_all(&channel, &queue, ["5", "five", "0", "4"].into_iter());
    let mut handled = [(); 2].map(|()| worker.line());
    handled.sort_unstable();
    assert_eq!(handled, ["100 / 4 = 25", "100 / 5 = 20"]);

    await_ready(&channel, &dead, 2);
    let mut bodies = [(); 2].map(|()| {
        let message = get(&channel, &dead);
        let deaths = format!("{:?}", message.properties().headers);
        assert!(deaths.contains("delivery_limit"), "{deaths}");
        message.text().unwrap().to_owned()
    });
    bodies.sort_unstable();
    assert_eq!(bodies, ["0", "five"]);

    close_connection(&queue);
    publish_all(&channel, &queue, ["2"].into_iter());
    assert_eq!(worker.line(), "100 / 2 = 50");
    assert_eq!(worker.terminate(), ["stopped"]);
    for queue in [queue, dead] {
        assert_eq!(channel.queue_delete(&queue).unwrap(), 0);
    }
}

#[test]
fn reliable_worker_stops_at_a_signal_while_there_is_no_broker() {
    let worker = Running::of(example("reliable_worker").env("AMQP_URL", "amqp://127.0.0.1:1"));
    // It prints this after the handler is set.
    assert_eq!(worker.line(), "waiting for the broker");
    assert_eq!(worker.terminate(), ["stopped"]);
}

#[test]
fn delayed_retry_sets_a_message_aside_after_three_attempts() {
    let (channel, queue) = (channel(), unique("retry"));
    let worker = Running::waiting("delayed_retry", &[&queue, "50"]);
    publish_all(&channel, &queue, ["seven", "7"].into_iter());
    let lines = [(); 4].map(|()| worker.line());
    let (handled, failed): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line.ends_with("handled"));
    assert_eq!(handled, ["7: handled"]);
    let attempts = [1, 2, 3].map(|number| format!("seven: attempt {number} failed"));
    assert_eq!(failed, attempts.iter().collect::<Vec<_>>());

    let aside = format!("{queue}.failed");
    assert_eq!(get(&channel, &aside).text().unwrap(), "seven");
    assert!(worker.stop().is_empty());
    for queue in [format!("{queue}.retry"), aside, queue] {
        assert_eq!(channel.queue_delete(&queue).unwrap(), 0);
    }
}

#[test]
fn pipeline_moves_every_message_once_it_is_confirmed() {
    let (channel, from, to) = (channel(), unique("from"), unique("to"));
    channel.queue_declare(&from).unwrap();
    let bodies: Vec<String> = (0..1200).map(|number| format!("body {number}")).collect();
    publish_all(&channel, &from, bodies.iter().map(String::as_str));
    let pipeline = Running::waiting("pipeline", &[&from, &to]);
    await_ready(&channel, &to, 1200);
    assert_eq!(pipeline.stop(), ["1200 messages moved"]);
    assert_eq!(get(&channel, &to).text().unwrap(), "BODY 0");
    assert_eq!(channel.queue_delete(&from).unwrap(), 0);
    assert_eq!(channel.queue_delete(&to).unwrap(), 1199);
}

#[test]
fn publish_lines_goes_on_behind_the_last_line_that_was_confirmed() {
    let (channel, queue) = (channel(), unique("lines"));
    let limited = queue::Declare::new(&queue).max_length(300);
    let limited = limited.overflow(queue::Overflow::RejectPublish);
    channel.queue_declare(limited).unwrap();
    let path = std::env::temp_dir().join(&queue);
    let record = format!("{}.confirmed", path.display());
    let lines: String = (1..=1500).map(|number| format!("{number}\n")).collect();
    std::fs::write(&path, lines).unwrap();

    let publish = || {
        let mut publish = example("publish_lines");
        publish.arg(&queue).arg(&path).output().unwrap()
    };
    for (confirmed, first) in [(300, "1"), (600, "301")] {
        let output = publish();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            output.stdout,
            format!("{confirmed} lines are confirmed\n").as_bytes()
        );
        let kept = std::fs::read_to_string(&record).unwrap();
        assert_eq!(kept, confirmed.to_string());
        let message = get(&channel, &queue);
        assert_eq!(message.text().unwrap(), first);
        let id = message.properties().message_id.clone().unwrap();
        assert_eq!(id, format!("line {first}"));
        assert_eq!(channel.queue_purge(&queue).unwrap(), 299);
    }

    channel.queue_delete(&queue).unwrap();
    channel.queue_declare(&queue).unwrap();
    let output = publish();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"1500 lines are confirmed\n");
    for file in [&path, std::path::Path::new(&record)] {
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(get(&channel, &queue).text().unwrap(), "601");
    assert_eq!(channel.queue_delete(&queue).unwrap(), 899);
}

#[test]
fn metrics_prints_a_line_each_second() {
    let lines = output("metrics", &["2"]);
    let published: Vec<u64> = lines
        .lines()
        .map(|line| {
            let rest = line.strip_prefix("published ").unwrap();
            let (rate, rest) = rest.split_once("/s, confirmed ").unwrap();
            assert!(rest.ends_with(" bytes"), "{line}");
            rate.parse().unwrap()
        })
        .collect();
    assert_eq!(published.len(), 2);
    assert!(published.iter().sum::<u64>() > 0, "{lines}");
}

#[test]
fn schedule_fires_one_timer_once_one_three_times_and_one_never() {
    let printed = output("schedule", &[]);
    // The report may arrive between any two ticks.
    let (received, ticks): (Vec<_>, Vec<_>) = printed
        .lines()
        .partition(|line| line.starts_with("received"));
    assert_eq!(received, ["received: a report", "received: good night"]);
    assert_eq!(ticks, ["tick 1", "tick 2", "tick 3", "done"]);
}

#[test]
fn several_brokers_connects_to_the_only_broker_that_is_running_and_again_after_a_loss() {
    let name = unique("several");
    let named = format!("{}?connection_name={name}", url());
    let running = Running::start("several_brokers", &["amqp://127.0.0.1:1", &named]);
    let assert_connected = || {
        let line = running.line();
        assert!(line.starts_with("connected to "), "{line}");
    };
    assert_connected();
    assert_eq!(running.line(), "working on channel 1");
    close_connection(&name);
    assert_connected();
    assert!(running.stop().is_empty());
    let mistaken = example("several_brokers")
        .arg("amqp:/oops")
        .output()
        .unwrap();
    assert!(!mistaken.status.success());
}

#[cfg(feature = "native-tls")]
#[test]
fn tls_client_certificate_connects_without_a_password() {
    let url = variable("CONY_BROKER_TLS_URL");
    let (_, rest) = url.rsplit_once(':').unwrap();
    let (port, _) = rest.split_once('/').unwrap();
    let files =
        ["CA", "CLIENT_CERT", "CLIENT_KEY"].map(|of| variable(&format!("CONY_BROKER_{of}")));
    let printed = output(
        "tls_client_certificate",
        &["localhost", port, &files[0], &files[1], &files[2]],
    );
    assert_eq!(printed, "connected with TLS, without a password\n");
}

#[test]
fn an_example_without_its_arguments_prints_its_usage() {
    for name in [
        "pipeline",
        "publish_file",
        "publish_lines",
        "several_brokers",
        "tls_client_certificate",
        "tutorial_4_receive_logs_direct",
        "tutorial_5_receive_logs_topic",
    ] {
        let output = example(name).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(printed.contains(&format!("usage: {name}")), "{printed}");
    }
}

/// Returns the last line of `perf`, which is JSON. The names in it need no escapes.
fn measured(arguments: &[&str]) -> String {
    let output = run(example("perf").args(arguments), b"");
    let line = String::from_utf8(output).unwrap();
    assert!(line.starts_with("{\"client\":\"cony\","), "{line}");
    assert!(line.ends_with("}\n"), "{line}");
    line
}

/// Returns the number with this name in the JSON.
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
fn perf_adds_up_the_messages_of_several_connections_and_channels() {
    let several = ["--connections", "2", "--channels", "3", "--messages", "100"];
    for scenario in ["publish-confirm-window", "consume-ack"] {
        let json = measured(&[&[scenario, "--persistent"], several.as_slice()].concat());
        assert_eq!(figure(&json, "messages"), 600.0, "{json}");
    }
}

#[test]
fn perf_runs_for_a_time_and_publishes_for_its_consumers() {
    for scenario in ["publish", "consume-noack", "consume-ack", "get"] {
        let json = measured(&[scenario, "--seconds", "1", "--size", "200"]);
        assert!(figure(&json, "messages") > 0.0, "{json}");
        assert!(figure(&json, "seconds") >= 1.0, "{json}");
    }
}

#[test]
fn perf_uses_tls_with_an_amqps_url() {
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
    for (arguments, expected) in [
        (&["--size", "16"][..], "which scenario"),
        (&["consume"], "'consume'"),
        (&["get", "--size", "big"], "--size needs a number"),
        (&["get", "--url"], "--url needs a value"),
        (&["get", "--channels", "0"], "at least one"),
    ] {
        let output = example("perf").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let problem = String::from_utf8(output.stderr).unwrap();
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn event_loop_squares_the_numbers_of_its_timer() {
    let output = run(&mut example("event_loop"), b"");
    let expected = "1 x 1 = 1\n2 x 2 = 4\n3 x 3 = 9\n4 x 4 = 16\n5 x 5 = 25\ndone\n";
    assert_eq!(String::from_utf8(output).unwrap(), expected);
}

#[test]
fn select_takes_the_input_the_deliveries_and_the_callbacks_in_one_thread() {
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
fn an_example_without_a_broker_prints_the_likely_cause() {
    let output = example("hello_world")
        .env("AMQP_URL", "amqp://127.0.0.1:1/")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(printed.contains("the broker is running"), "{printed}");
}

/// Connecting to this machine instead would ignore the user's setting.
#[cfg(unix)]
#[test]
fn an_example_refuses_a_url_in_the_environment_that_is_not_utf_8() {
    use std::os::unix::ffi::OsStringExt;

    let url = OsString::from_vec(b"amqp://user:hush\xff@broker.example/".to_vec());
    for name in ["hello_world", "perf"] {
        let output = example(name).env("AMQP_URL", &url).output().unwrap();
        assert!(!output.status.success(), "{name}");
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(printed.contains("AMQP_URL"), "{name}: {printed}");
        assert!(printed.contains("UTF-8"), "{name}: {printed}");
        assert!(!printed.contains("hush"), "{name}: {printed}");
    }
}

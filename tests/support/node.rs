//! A RabbitMQ node that belongs to one test program, which may pause, kill and restart the node.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use cony::{BlockingConnection, ConnectionParameters};
use parking_lot::{Mutex, MutexGuard};

pub(crate) struct Node {
    pub(crate) url: String,
    pub(crate) control: String,
    #[cfg(feature = "native-tls")]
    tls_url: String,
    /// The file with the authority of its certificate.
    #[cfg(feature = "native-tls")]
    authority: String,
    _process: Child,
    /// The node stops when this pipe closes, at the latest when the test process ends.
    _lifeline: ChildStdin,
}

impl Node {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/with-broker");
        let mut process = Command::new(script)
            .args([
                "sh",
                "-c",
                r#"echo "$AMQP_URL"; echo "$CONY_BROKER_CTL"; echo "$CONY_BROKER_TLS_URL"
                   echo "$CONY_BROKER_CA"; exec cat"#,
            ])
            .env_remove("AMQP_URL")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut line = || {
            lines
                .next()
                .expect("tests/with-broker prints the reason")
                .unwrap()
        };
        Self {
            url: line(),
            control: line(),
            #[cfg(feature = "native-tls")]
            tls_url: line(),
            #[cfg(feature = "native-tls")]
            authority: line(),
            _lifeline: process.stdin.take().unwrap(),
            _process: process,
        }
    }

    /// Returns the port for AMQP, on the loopback address.
    pub(crate) fn port(&self) -> u16 {
        let parameters: ConnectionParameters = self.url.parse().unwrap();
        parameters.get_port()
    }

    /// Returns parameters of a connection over TLS, which trusts the authority of the node.
    #[cfg(feature = "native-tls")]
    pub(crate) fn tls_parameters(&self) -> ConnectionParameters {
        let parameters: ConnectionParameters = self.tls_url.parse().unwrap();
        parameters.tls_options(cony::TlsOptions::new().ca_file(&self.authority))
    }

    pub(crate) fn rabbitmqctl(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.control);
        super::run(command.arg("-q").args(arguments), b"");
    }

    pub(crate) fn control(&self, act: &str) {
        let done = Command::new(&self.control).arg(act).status().unwrap();
        assert!(done.success(), "{act}: {done}");
    }

    /// Sets a parameter of the application `rabbit` while the node runs.
    pub(crate) fn configure(&self, name: &str, value: u32) {
        let set = format!("application:set_env(rabbit, {name}, {value}).");
        self.rabbitmqctl(&["eval", &set]);
    }

    pub(crate) fn set_watermark(&self, value: &str) {
        self.rabbitmqctl(&["set_vm_memory_high_watermark", value]);
    }

    /// Returns parameters of a connection that a loss ends.
    pub(crate) fn parameters(&self) -> ConnectionParameters {
        super::without_recovery(&self.url)
    }

    /// Opens a connection that a loss ends.
    pub(crate) fn connect(&self) -> BlockingConnection {
        BlockingConnection::open(self.parameters()).unwrap()
    }
}

/// The memory alarm of the node. Dropping this ends the alarm.
pub(crate) struct Alarm<'a>(&'a Node);

impl<'a> Alarm<'a> {
    pub(crate) fn raise(node: &'a Node) -> Self {
        node.set_watermark("0.0001");
        Self(node)
    }
}

impl Drop for Alarm<'_> {
    /// Ends the alarm for the tests behind a failed one, too.
    fn drop(&mut self) {
        self.0.set_watermark("0.6");
    }
}

/// Returns a node that no test disturbs, so that several tests may use it at the same time.
pub(crate) fn steady_node() -> &'static Node {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(Node::start)
}

/// Returns the running node, which only one test at a time may use.
pub(crate) fn node() -> MutexGuard<'static, Node> {
    static NODE: OnceLock<Mutex<Node>> = OnceLock::new();
    let node = NODE.get_or_init(|| Mutex::new(Node::start())).lock();
    if BlockingConnection::open(&node.url).is_err() {
        node.control("start");
    }
    node
}

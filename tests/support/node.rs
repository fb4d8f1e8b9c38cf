//! A node of a test program's own, which may be killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use cony::BlockingConnection;
use parking_lot::{Mutex, MutexGuard};

pub(crate) struct Node {
    pub(crate) url: String,
    pub(crate) control: String,
    _process: Child,
    /// The node stops when this closes, which happens at the latest with this process.
    _lifeline: ChildStdin,
}

impl Node {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/with-broker");
        let mut process = Command::new(script)
            .args([
                "sh",
                "-c",
                r#"echo "$AMQP_URL"; echo "$CONY_BROKER_CTL"; exec cat"#,
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
                .expect("with-broker says what is wrong")
                .unwrap()
        };
        Self {
            url: line(),
            control: line(),
            _lifeline: process.stdin.take().unwrap(),
            _process: process,
        }
    }

    pub(crate) fn control(&self, act: &str) {
        let done = Command::new(&self.control).arg(act).status().unwrap();
        assert!(done.success(), "{act}: {done}");
    }

    pub(crate) fn connect(&self) -> BlockingConnection {
        BlockingConnection::open(&self.url).unwrap()
    }
}

/// The node, up and running, for one test at a time.
pub(crate) fn node() -> MutexGuard<'static, Node> {
    static NODE: OnceLock<Mutex<Node>> = OnceLock::new();
    let node = NODE.get_or_init(|| Mutex::new(Node::start())).lock();
    if BlockingConnection::open(&node.url).is_err() {
        node.control("start");
    }
    node
}

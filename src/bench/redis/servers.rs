//! Plain redis-servers: one alone, and a primary with two replicas.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::local::cluster::PATIENCE;
use crate::redis::client::{Client, Reply};

/// They end when this is dropped, or when this process does.
pub(super) struct Servers {
    _dir: tempfile::TempDir,
    children: Vec<Child>,
    addresses: Vec<SocketAddr>,
}

const REPLICAS: usize = 2;

impl Servers {
    pub(super) fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mu-plain-").tempdir();
        let dir = dir.context("a temporary folder")?;
        let mut servers = Self {
            _dir: dir,
            children: Vec::new(),
            addresses: free()?,
        };
        for n in 0..servers.addresses.len() {
            let primary = (n > 1).then(|| servers.primary());
            servers.launch(n, primary)?;
        }
        for address in &servers.addresses {
            servers.wait(*address, |client| {
                Ok(matches!(client.call(&[b"PING"])?, Reply::Text(_)))
            })?;
        }
        servers.wait(servers.primary(), |client| {
            let wanted = REPLICAS.to_string();
            client.must(&[b"SET", b"ready", b"1"])?;
            let reply = client.call(&[b"WAIT", wanted.as_bytes(), b"100"])?;
            Ok(reply == Reply::Integer(REPLICAS as i64))
        })?;
        Ok(servers)
    }

    fn launch(&mut self, n: usize, primary: Option<SocketAddr>) -> Result<()> {
        let address = self.addresses[n];
        let dir = self._dir.path().join(n.to_string());
        std::fs::create_dir(&dir).context("a folder")?;
        let mut command = Command::new("redis-server");
        command
            .args([
                "--bind",
                &address.ip().to_string(),
                "--port",
                &address.port().to_string(),
            ])
            .args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--repl-diskless-sync-delay",
                "0",
                "--dir",
            ])
            .arg(dir);
        if let Some(primary) = primary {
            command.args([
                "--replicaof",
                &primary.ip().to_string(),
                &primary.port().to_string(),
            ]);
        }
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = quiet
            .spawn()
            .context("starting redis-server; on Debian, apt-get install redis-server")?;
        self.children.push(child);
        Ok(())
    }

    fn wait(
        &self,
        address: SocketAddr,
        mut ready: impl FnMut(&mut Client) -> Result<bool>,
    ) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Ok(mut client) = Client::connect(address, PATIENCE)
                && ready(&mut client).unwrap_or(false)
            {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "the redis-server at {address} does not become ready"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The server alone.
    pub(super) fn plain(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The primary with its replicas.
    pub(super) fn primary(&self) -> SocketAddr {
        self.addresses[1]
    }
}

/// Ports of the loopback address at which nobody listens.
fn free() -> Result<Vec<SocketAddr>> {
    let listeners: std::io::Result<Vec<TcpListener>> = (0..2 + REPLICAS)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect();
    let addresses = listeners.context("free ports")?;
    addresses
        .iter()
        .map(|listener| listener.local_addr().context("its address"))
        .collect()
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that is gone already is as wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

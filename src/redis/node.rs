//! The process of one node: redis-server with the shared object.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use crate::redis::check::Names;

/// The variable that the shared object reads.
const VARIABLE: &str = "MU_REDIS_NODE";
/// Settings that the server is given unless the user names them. A primary without replicas of its own writes its
/// commands down once, for the log; the backlog that it has from its time as a follower would be a second time, a tenth
/// of its work. Replicas that come with a promoted follower are back sooner than that: Redis tries once a second.
const PREFERRED: [(&str, &str); 1] = [("repl-backlog-ttl", "5")];
/// A server that was asked to end is killed after so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What every start of a node has alike.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The cluster's configuration.
    pub(crate) config: PathBuf,
    pub(crate) id: u8,
    /// Where its clients come.
    pub(crate) client: SocketAddr,
    /// Where Sentinel's questions are answered.
    pub(crate) sentinel: SocketAddr,
    /// Its files.
    pub(crate) dir: PathBuf,
    pub(crate) object: PathBuf,
    /// The server and what it is told.
    pub(crate) command: Vec<String>,
    /// The settings in it.
    pub(crate) named: Names,
    /// A seeded bug.
    pub(crate) fault: Option<String>,
}

/// A running server.
pub(crate) struct Node {
    child: Child,
    /// Lines of JSON about its role.
    pub(crate) report: File,
}

/// Where Sentinel's questions are answered, by the address of the clients; the shared object counts alike. As 26379
/// stands beside 6379, unless that would be a port that the kernel gives to connections.
pub(crate) fn sentinel_of(client: SocketAddr) -> SocketAddr {
    const ABOVE: u16 = 20_000;
    const BELOW: u16 = 10_000;
    const GIVEN_AWAY: u16 = 32_768;
    let port = client.port();
    let beside = match port < GIVEN_AWAY - ABOVE {
        true => port + ABOVE,
        false => port - BELOW,
    };
    SocketAddr::new(client.ip(), beside)
}

impl Plan {
    /// Starts the server. `form`: it founds the group.
    pub(crate) fn start(&self, form: bool) -> Result<Node> {
        let feeder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("a port for the server's replication")?;
        let (report, reporter) = pipe2(OFlag::O_CLOEXEC).context("a pipe")?;
        let mut secret = [0; 24];
        getrandom::fill(&mut secret).context("the system's random source")?;
        let secret = data_encoding::HEXLOWER.encode(&secret);
        let file = self.write_settings(&feeder.local_addr()?, &secret)?;
        let setup = serde_json::json!({
            "config": self.config,
            "id": self.id,
            "form": form,
            "feeder_fd": feeder.as_raw_fd(),
            "secret": secret,
            "sentinel": self.sentinel,
            "report_fd": reporter.as_raw_fd(),
            "fault": self.fault,
        });
        let (program, arguments) = self.command.split_first().context("the server's program")?;
        let mut command = Command::new(program);
        let options = arguments
            .iter()
            .position(|argument| argument.starts_with("--"))
            .unwrap_or(arguments.len());
        let (first, options) = arguments.split_at(options);
        command.args(first);
        for (name, value) in PREFERRED {
            if !self.named.contains(name) {
                command.arg(format!("--{name}")).arg(value);
            }
        }
        command.args(options).arg("--include").arg(file);
        command
            .env("LD_PRELOAD", &self.object)
            .env(VARIABLE, setup.to_string());
        // Redis logs to standard output, which is for the launcher's words.
        let log = std::io::stderr()
            .as_fd()
            .try_clone_to_owned()
            .context("standard error")?;
        command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::inherit());
        for descriptor in [feeder.as_fd(), reporter.as_fd()] {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))
                .context("handing a descriptor over")?;
        }
        let child = command
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        Ok(Node {
            child,
            report: File::from(report),
        })
    }

    /// What the server has to be told; it comes last, so it counts. A primary that crashes has to be gone at once: its
    /// report takes time, and its test of the memory writes over what the node's threads still use.
    fn write_settings(&self, feeder: &SocketAddr, secret: &str) -> Result<PathBuf> {
        let path = self.dir.join("mu.conf");
        let text = format!(
            "bind {}\nport {}\ndir {}\ndbfilename mu.rdb\ndaemonize no\n\
             appendonly yes\nappendfsync always\nappendfilename appendonly.aof\nappenddirname appendonlydir\n\
             no-appendfsync-on-rewrite no\nauto-aof-rewrite-percentage 0\naof-use-rdb-preamble yes\n\
             aof-timestamp-enabled no\nsave \"\"\nstop-writes-on-bgsave-error no\n\
             replicaof {} {}\nmasterauth {secret}\nreplica-read-only yes\nreplica-serve-stale-data yes\n\
             repl-timeout 1000000000\nrepl-diskless-load on-empty-db\nshutdown-timeout 0\n\
             cluster-enabled no\nio-threads 1\nreplica-ignore-maxmemory yes\n\
             crash-log-enabled no\ncrash-memcheck-enabled no\nloadmodule {}\n",
            self.client.ip(),
            self.client.port(),
            quoted(&self.dir),
            feeder.ip(),
            feeder.port(),
            quoted(&self.object),
        );
        let mut options = File::options();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        let mut file = file.with_context(|| format!("making {}", path.display()))?;
        file.write_all(text.as_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
        // The file of an earlier life would be loaded.
        match std::fs::remove_dir_all(self.dir.join("appendonlydir")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("removing the files of an earlier life")
            }
            _ => Ok(path),
        }
    }
}

/// A path as a configuration of Redis has it.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

impl Node {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.child.try_wait().context("waiting for the server")
    }

    /// Asks it to end, and sees to it.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a process number")?);
        let begin = Instant::now();
        if self.ended()?.is_none() {
            kill(pid, Signal::SIGTERM).context("SIGTERM to the server")?;
        }
        while self.ended()?.is_none() {
            if begin.elapsed() > PATIENCE {
                self.child.kill().context("SIGKILL to the server")?;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // One that is gone already is as wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

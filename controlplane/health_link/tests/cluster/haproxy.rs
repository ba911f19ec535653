//! A real HAProxy that does what agents say, by its agent-check.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use weir_health_link::Checks;
use weir_health_load::{Directive, Health};

use crate::{Cluster, PATIENCE, loopback};

/// Ends with its value.
struct HaProxy {
    process: Child,
    directory: tempfile::TempDir,
}

impl HaProxy {
    fn start(checks: SocketAddr, hosts: [(u32, SocketAddr); 2]) -> HaProxy {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().display();
        let (ip, port) = (checks.ip(), checks.port());
        let servers = hosts.map(|(host, address)| {
            format!(
                "  server h{host} {address} weight 100 agent-check agent-addr {ip} agent-port {port} agent-inter 100ms agent-send \"{host}/1\\n\"\n"
            )
        });
        let config = format!(
            "global\n  stats socket {folder}/stats.sock\ndefaults\n  mode tcp\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n\
             listen web\n  bind unix@{folder}/web.sock\n  balance roundrobin\n{}",
            servers.concat()
        );
        std::fs::write(directory.path().join("haproxy.cfg"), config).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(directory.path().join("haproxy.cfg"));
        HaProxy { process: command.spawn().unwrap(), directory }
    }

    /// Status and weight of a server.
    fn server(&self, host: u32) -> Option<(String, String)> {
        let mut socket = UnixStream::connect(self.directory.path().join("stats.sock")).ok()?;
        socket.write_all(b"show stat\n").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        let row = text.lines().find(|line| line.starts_with(&format!("web,h{host},")))?;
        let fields: Vec<&str> = row.split(',').collect();
        Some((fields[17].to_owned(), fields[18].to_owned()))
    }

    async fn until(&self, host: u32, status: &str, weight: &str) {
        let begun = Instant::now();
        loop {
            let server = self.server(host);
            if server.as_ref().is_some_and(|known| known.0.starts_with(status) && known.1 == weight) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "h{host} is never {status} {weight}: {server:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Which host serves a new connection.
    fn connect(&self) -> (UnixStream, u8) {
        let mut stream = UnixStream::connect(self.directory.path().join("web.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let host = ask(&mut stream).expect("somebody answers");
        (stream, host)
    }

    /// How many of so many connections each of the two hosts served.
    fn share(&self, connections: usize) -> [usize; 2] {
        let hosts: Vec<u8> = (0..connections).map(|_| self.connect().1).collect();
        [7, 8].map(|host| hosts.iter().filter(|known| **known == host).count())
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ask(stream: &mut UnixStream) -> std::io::Result<u8> {
    stream.write_all(b"?")?;
    let mut host = [0];
    stream.read_exact(&mut host)?;
    Ok(host[0])
}

/// Answers each byte with its number.
async fn serve(host: u8) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move { while stream.read_u8().await.is_ok() && stream.write_u8(host).await.is_ok() {} });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn haproxy_does_what_agents_say() {
    let cluster = Cluster::new();
    let checks = Checks::spawn(loopback(), cluster.cache()).await.unwrap();
    let (seven, eight) = (cluster.agent(7, 60), cluster.agent(8, 60));
    let haproxy = HaProxy::start(checks.address(), [(7, serve(7).await), (8, serve(8).await)]);
    let up = "no check"; // how HAProxy calls a server that is up by its agent alone
    haproxy.until(7, up, "60").await;
    haproxy.until(8, up, "60").await;
    assert_eq!(haproxy.share(40), [20, 20]);

    // Weights follow what is free.
    eight.say(Health::Healthy, 40);
    haproxy.until(8, up, "20").await;
    let [most, least] = haproxy.share(80);
    assert!((58..=62).contains(&most) && most + least == 80, "{most} and {least}, not 60 and 20");

    // Draining: what there is goes on, and nothing new comes.
    let (mut old, host) = std::iter::repeat_with(|| haproxy.connect()).find(|(_, host)| *host == 7).unwrap();
    seven.direct(Directive::Draining);
    haproxy.until(7, "DRAIN", "60").await;
    assert_eq!(haproxy.share(20), [0, 20]);
    assert_eq!(ask(&mut old).unwrap(), host);
    seven.direct(Directive::Active);
    haproxy.until(7, up, "60").await;
    assert!(haproxy.share(20)[0] > 0);

    // Failing, and healthy again; inactive, and active again.
    seven.say(Health::Failing, 0);
    haproxy.until(7, "DOWN", "60").await;
    assert_eq!(haproxy.share(20), [0, 20]);
    seven.say(Health::Healthy, 10);
    haproxy.until(7, up, "50").await;
    assert!(haproxy.share(20)[0] > 0);
    seven.direct(Directive::Inactive);
    haproxy.until(7, "MAINT", "50").await;
    seven.direct(Directive::Active);
    haproxy.until(7, up, "50").await;

    // Drained and failing, then all is well: nothing of it stays.
    seven.direct(Directive::Draining);
    seven.say(Health::Failing, 0);
    haproxy.until(7, "DOWN", "50").await;
    seven.say(Health::Healthy, 0);
    seven.direct(Directive::Active);
    haproxy.until(7, up, "60").await;

    // A goodbye, and silence.
    seven.agent.goodbye().await;
    haproxy.until(7, "DOWN", "60").await;
    assert_eq!(haproxy.share(20), [0, 20]);
    drop(eight);
    haproxy.until(8, "DOWN", "20").await;
    let back = cluster.agent(7, 30);
    haproxy.until(7, up, "30").await;
    assert_eq!(haproxy.share(10), [10, 0]);
    drop(back);
}

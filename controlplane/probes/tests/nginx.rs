//! Probes against a real nginx in a directory and on a port of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use weir_health_load::Health;
use weir_identity::EndpointId;
use weir_probes::{Expect, HealthChange, Kind, Probes, Question, Reason, Target};

/// Ends with the test.
struct Nginx(Child);

impl Nginx {
    fn start(directory: &Path, address: SocketAddr) -> Nginx {
        let at = directory.display();
        let configuration = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ worker_connections 64; }}
             http {{
                access_log off; client_body_temp_path {at}/a; proxy_temp_path {at}/b; fastcgi_temp_path {at}/c;
                uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;
                server {{ listen {address}; server_name known.example; location / {{ return 204; }} location /busy {{ return 503; }} }}
                server {{ listen {address} default_server; return 404; }}
             }}"
        );
        let file = directory.join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(directory).arg("-c").arg(&file).arg("-e").arg(directory.join("error.log"));
        Nginx(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx is installed"))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn target(endpoint: u32, address: SocketAddr, path: &str, host: &str) -> Target {
    let kind = Kind::Http { path: path.into(), host: host.into(), expect: Expect::Good };
    let question = Question { address, kind, timeout: Duration::from_secs(5), source: None, interface: None };
    Target { endpoint: EndpointId(endpoint), question, interval: Duration::from_millis(50), rise: 2, fall: 3 }
}

/// The next `n` changes, by endpoint.
async fn next(changes: &mut mpsc::Receiver<HealthChange>, n: usize) -> Vec<(u32, Health, Reason)> {
    let mut seen = Vec::new();
    while seen.len() < n {
        let change = timeout(Duration::from_secs(20), changes.recv()).await.expect("a change comes soon").unwrap();
        seen.push((change.endpoint.0, change.health, change.reason));
    }
    seen.sort_by_key(|(endpoint, ..)| *endpoint);
    seen
}

#[tokio::test]
async fn nginx_comes_goes_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (sender, mut changes) = mpsc::channel(8);
    let targets = vec![
        target(1, address, "/", "known.example"),
        target(2, address, "/busy", "known.example"),
        target(3, address, "/", "unknown.example"),
    ];
    // Nobody listens yet.
    let probes = Probes::spawn(targets, sender).unwrap();
    let down = |endpoint| (endpoint, Health::Failing, Reason::Refused);
    assert_eq!(next(&mut changes, 3).await, [down(1), down(2), down(3)]);

    // Only the one that is answered well rises.
    let nginx = Nginx::start(directory.path(), address);
    assert_eq!(next(&mut changes, 1).await, [(1, Health::Healthy, Reason::Status(204))]);
    drop(nginx);
    assert_eq!(next(&mut changes, 1).await, [down(1)]);
    let _again = Nginx::start(directory.path(), address);
    assert_eq!(next(&mut changes, 1).await, [(1, Health::Healthy, Reason::Status(204))]);
    probes.stop().await;
    assert_eq!(changes.recv().await, None, "the others never rose");
}

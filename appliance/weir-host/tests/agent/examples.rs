//! The examples in the program's documentation, run as they stand there.

use std::process::Command;

use weir_health_load::Health;

use crate::farm::Farm;
use crate::{APPLICATION, farm};

/// The code of an example in this language.
fn example(language: &str) -> String {
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/main.rs")).unwrap();
    let text: Vec<&str> = documented.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let begin = text.iter().position(|line| *line == format!(" ```{language}")).unwrap();
    let lines = text[begin + 1..].iter().take_while(|line| **line != " ```");
    lines.map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned() + "\n").collect()
}

fn run(program: &str, option: &str, code: &str) {
    let done = Command::new(program).args([option, code]).output().unwrap();
    assert!(done.status.success(), "{code}: {}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_examples_do_what_they_say() {
    let farm = Farm::new().await;
    let agent = farm.agent("host-7", &[7], "");
    let shell = example("sh").replace("/run/weir-host.sock", agent.socket().to_str().unwrap());
    let lines: Vec<&str> = shell.lines().collect();
    let (rest, delete) = lines.split_at(lines.len() - 1);
    assert!(rest.len() == 5 && delete[0].starts_with("api DELETE"), "{shell}");
    run("bash", "-c", &format!("set -e\n{}", rest.join("\n")));
    farm.until(7, "healthy", |cached| farm::health(cached, APPLICATION) == Some(Health::Healthy)).await;
    let row = agent.status()["hosts"][0]["applications"][0].clone();
    assert_eq!(row["capacity"], 80);
    assert!(row["lease_left_ms"].as_u64().unwrap() > 5_000, "{row}");

    let python = example("python").replace("/run/weir-host.sock", agent.socket().to_str().unwrap());
    run("python3", "-c", &python);
    farm.until(7, "loaded", |cached| cached.table().row(APPLICATION).unwrap().status.load > 8).await;

    run("bash", "-c", &format!("{}\n{}", rest[0], delete[0]));
    farm.until(7, "without the row", |cached| cached.table().is_empty()).await;
    agent.terminate();
}

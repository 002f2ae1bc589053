//! The listener, asked as anybody may ask it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::admin::AwsReport;
use crate::admin::testing::{Fake, description, fake};

async fn start(source: Fake, limits: HttpLimits) -> SocketAddr {
    start_with(source, description(), limits).await
}

async fn start_with(source: Fake, described: Description, limits: HttpLimits) -> SocketAddr {
    let listener = bind_http("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = watch::channel(described);
    tokio::spawn(async move {
        serve_http(listener, source, receiver, limits).await;
        drop(sender);
    });
    address
}

/// All that comes back for these bytes.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The other side may have closed before it has read all.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
}

async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let answer = raw(address, request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn healthz_answers_while_the_process_lives() {
    let address = start(fake(), HttpLimits::default()).await;
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".to_owned()));
}

#[tokio::test]
async fn readyz_tells_what_keeps_packets_from_flowing() {
    let address = start(fake(), HttpLimits::default()).await;
    assert_eq!(get(address, "/readyz").await, (200, "ready\n".to_owned()));
    let reasons = vec!["interface eth7 is down".to_owned(), "no route".to_owned()];
    let address = start(Fake { not_ready: reasons, ..fake() }, HttpLimits::default()).await;
    let told = "not ready\n- interface eth7 is down\n- no route\n";
    assert_eq!(get(address, "/readyz").await, (503, told.to_owned()));
    let request = "GET /readyz HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nConnection: close\r\n\r\n";
    let (code, body) = ask(address, request).await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &body["state"], &body["reasons"][1]), (503, &"not ready".into(), &"no route".into()));
}

#[tokio::test]
async fn readyz_is_degraded_and_still_200_when_packets_flow_all_the_same() {
    let failed = Some("failed: not permitted".to_owned());
    let described = Description { source_dest_check: failed, ..description() };
    let address = start_with(fake(), described, HttpLimits::default()).await;
    let told = "degraded\n- source/dest check failed: not permitted\n";
    assert_eq!(get(address, "/readyz").await, (200, told.to_owned()));
}

#[tokio::test]
async fn failures_of_aws_degrade_only_once_they_last() {
    let aws =
        AwsReport { failures: vec!["ec2:DescribeRouteTables timed out".to_owned()], ..AwsReport::default() };
    let told = async |seconds| {
        let since = tokio::time::Instant::now().checked_sub(Duration::from_secs(seconds));
        let described = Description { aws: Some(aws.clone()), aws_failing_since: since, ..description() };
        let (_sender, receiver) = watch::channel(described);
        View::new(fake(), receiver).status().await.unwrap().degraded
    };
    assert_eq!(told(60).await, [""; 0]);
    assert_eq!(told(180).await, ["for 3 minutes, ec2:DescribeRouteTables timed out"]);
}

#[tokio::test]
async fn status_json_is_what_the_control_socket_tells() {
    let address = start(fake(), HttpLimits::default()).await;
    let (code, body) = get(address, "/status.json").await;
    let status: Status = serde_json::from_str(&body).unwrap();
    assert_eq!((code, status.ready, status.drops["no_session"]), (200, true, 7));
}

#[tokio::test]
async fn nothing_but_reading_is_allowed() {
    let address = start(fake(), HttpLimits::default()).await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let request = format!("{method} /status.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = raw(address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"), "{answer}");
    }
    assert_eq!(get(address, "/nowhere").await.0, 404);
    let head = raw(address, "HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(head.contains("content-length: 3") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let address = start(fake(), HttpLimits::default()).await;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nLong: {}\r\n\r\n", "a".repeat(64 << 10));
    let answer = raw(address, &request).await;
    // Closing with unread input may reset the connection before the answer is read.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn clients_that_dawdle_do_not_keep_others_out() {
    let short = Duration::from_millis(200);
    let limits = HttpLimits {
        connections: 2,
        head_time: short,
        connection_time: short * 2,
        last_answer_time: short,
        ..HttpLimits::default()
    };
    let address = start(fake(), limits).await;
    // One that never says what it wants, and one that asks for much and reads none of it.
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(b"GET /heal").await.unwrap();
    let mut deaf = TcpStream::connect(address).await.unwrap();
    let request = b"GET /status.json HTTP/1.1\r\nHost: x\r\n\r\n";
    let _ = timeout(short, async { while deaf.write_all(request).await.is_ok() {} }).await;
    assert_eq!(get(address, "/healthz").await.0, 200);
}

#[tokio::test]
async fn an_address_in_use_is_told_with_what_to_do() {
    let address = start(fake(), HttpLimits::default()).await;
    let error = bind_http(address).await.unwrap_err().to_string();
    let expected =
        format!("another program listens on {address}; set admin.listen to another address, or to \"off\"");
    assert_eq!(error, expected);
}

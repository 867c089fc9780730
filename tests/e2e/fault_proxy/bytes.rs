//! Faults of what passes: late, slow, held back, wrong, in pieces.

use std::time::Duration;

use tokio::time::Instant;

use super::{Wire, exchange, pattern, receive, rest, send};
use crate::support::fault::Fault;

#[tokio::test]
async fn without_a_fault_everything_passes_both_ways_and_so_does_the_end() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    // More than all buffers between hold, so that both ends work at once.
    let (there, back) = (pattern(8 << 20), pattern(5 << 20));
    let client_side = async {
        let (mut from, mut to) = client.split();
        let mut got = Vec::new();
        let sent = async {
            tokio::io::AsyncWriteExt::write_all(&mut to, &there).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut to).await
        };
        let read = tokio::io::AsyncReadExt::read_to_end(&mut from, &mut got);
        let (sent, read) = tokio::join!(sent, read);
        sent.and(read).unwrap();
        got
    };
    let server_side = async {
        let (got, ended) = rest(&mut server).await;
        ended.unwrap();
        // The sender has said its end, and is still answered.
        send(&mut server, &back).await;
        drop(server);
        got
    };
    let (got_back, got_there) = tokio::join!(client_side, server_side);
    assert!(got_there == there && got_back == back);
    let counters = wire
        .until("the connection is gone", |one| one.open == 0)
        .await;
    assert_eq!(
        (counters.connections, counters.bytes_up, counters.bytes_down),
        (1, 8 << 20, 5 << 20)
    );
    assert!(counters.applied.is_empty(), "{counters:?}");
}

#[tokio::test]
async fn latency_holds_one_way_and_ends_when_it_is_cleared() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    wire.set(Fault::latency(150).down()).await;
    let began = Instant::now();
    exchange(&mut client, &mut server).await;
    assert!(began.elapsed() >= Duration::from_millis(150));
    assert_eq!(wire.applied("latency").await, 1, "the way up has none");
    // An hour would be noticed: what waits is let go.
    wire.set(Fault::latency(3_600_000).down()).await;
    send(&mut server, b"late").await;
    wire.until("it waits", |one| one.applied["latency"] == 2)
        .await;
    wire.clear().await;
    assert_eq!(receive(&mut client, 4).await, b"late");
}

#[tokio::test]
async fn a_rate_is_kept() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    let bytes = pattern(40_000);
    wire.set(
        Fault::Rate {
            bytes_per_second: 100_000,
        }
        .up(),
    )
    .await;
    let began = Instant::now();
    send(&mut client, &bytes).await;
    assert_eq!(receive(&mut server, bytes.len()).await, bytes);
    assert!(began.elapsed() >= Duration::from_millis(390));
}

#[tokio::test]
async fn a_blackhole_keeps_everything_and_delivers_it_when_it_is_gone() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    wire.set(Fault::Blackhole.down()).await;
    send(&mut server, b"kept").await;
    // The other way goes on, on the same connection and long after.
    for _ in 0..100 {
        send(&mut client, b"on").await;
        receive(&mut server, 2).await;
    }
    assert_eq!(wire.counters().await.bytes_down, 0);
    assert_eq!(wire.applied("blackhole").await, 1);
    wire.clear().await;
    assert_eq!(receive(&mut client, 4).await, b"kept");

    // In front of one that comes, both ways: it is open, and only that.
    wire.set(Fault::Blackhole).await;
    let (mut late, mut served) = wire.pair().await;
    send(&mut late, b"hello").await;
    let (mut other, _) = (wire.connect().await.unwrap(), wire.target.accept().await);
    send(&mut other, b"x").await;
    let counters = wire.until("all are open", |one| one.open == 3).await;
    assert_eq!(counters.bytes_up, 200, "what came before");
    wire.clear().await;
    assert_eq!(receive(&mut served, 5).await, b"hello");
}

#[tokio::test]
async fn the_byte_at_an_offset_is_another() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    exchange(&mut client, &mut server).await;
    let corrupt = Fault::Corrupt {
        at: Some(3),
        one_in: None,
    };
    // Counted from here on.
    wire.set(corrupt.up()).await;
    send(&mut client, b"abcdef").await;
    let got = receive(&mut server, 6).await;
    assert_eq!((&got[..3], &got[4..]), (&b"abc"[..], &b"ef"[..]));
    assert_ne!(got[3], b'd');
    assert_eq!(wire.applied("corrupt").await, 1);
}

#[tokio::test]
async fn one_in_so_many_bytes_is_another() {
    let wire = Wire::seeded(7).await;
    let (mut client, mut server) = wire.pair().await;
    let corrupt = Fault::Corrupt {
        at: None,
        one_in: Some(100),
    };
    wire.set(corrupt.down()).await;
    let bytes = pattern(60_000);
    let (got, ()) = tokio::join!(receive(&mut client, bytes.len()), send(&mut server, &bytes));
    let wrong = got.iter().zip(&bytes).filter(|(one, other)| one != other);
    let wrong = wrong.count() as u64;
    // 600 are expected, give or take some 25.
    assert!((400..800).contains(&wrong), "{wrong}");
    assert_eq!(wire.applied("corrupt").await, wrong);
}

#[tokio::test]
async fn slices_come_one_after_the_other() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    wire.set(
        Fault::Slice {
            bytes: 2,
            gap_ms: 10,
        }
        .up(),
    )
    .await;
    let began = Instant::now();
    send(&mut client, b"abcdefghijklmnopqrst").await;
    assert_eq!(receive(&mut server, 20).await, b"abcdefghijklmnopqrst");
    assert!(began.elapsed() >= Duration::from_millis(100));
    assert_eq!(wire.applied("slice").await, 10);
}

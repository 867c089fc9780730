//! Faults of whole connections: torn, refused, cut, half of them gone.

use std::io::ErrorKind;

use tokio::io::AsyncReadExt;

use super::{Wire, exchange, is_reset, pattern, receive, rest, send};
use crate::support::{
    fault::{Fault, FaultProxy},
    wait::{eventually, within},
};

#[tokio::test]
async fn a_reset_tears_what_is_there_and_leaves_what_comes() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    exchange(&mut client, &mut server).await;
    wire.set(Fault::reset_once()).await;
    for end in [&mut client, &mut server] {
        let (_, ended) = rest(end).await;
        assert!(is_reset(&ended), "{ended:?}");
    }
    let (mut client, mut server) = wire.pair().await;
    exchange(&mut client, &mut server).await;
    assert_eq!(wire.applied("reset").await, 1);
    // The same once more: it is for those that are there now.
    wire.set(Fault::reset_once()).await;
    assert!(is_reset(&rest(&mut client).await.1));
}

#[tokio::test]
async fn new_connections_are_reset_and_old_ones_are_not() {
    let wire = Wire::new().await;
    let (mut old, mut server) = wire.pair().await;
    wire.set(Fault::Reset {
        existing: false,
        new: true,
    })
    .await;
    let ended = wire.connect_to_end().await;
    assert!(is_reset(&ended), "{ended:?}");
    exchange(&mut old, &mut server).await;
    let counters = wire.counters().await;
    assert_eq!((counters.connections, counters.open), (2, 1));
    assert_eq!(counters.applied["reset"], 1);
}

#[tokio::test]
async fn a_share_of_all_connections_is_hit_the_same_one_for_the_same_seed() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let wire = Wire::seeded(42).await;
        let new = Fault::Reset {
            existing: false,
            new: true,
        };
        wire.set(new.for_share(50)).await;
        let mut lots = Vec::new();
        for _ in 0..64 {
            // What is let through ends well, what is not is reset.
            let served = async {
                drop(wire.target.accept().await);
                std::future::pending::<()>().await;
            };
            let hit = tokio::select! {
                () = served => unreachable!("it waits"),
                ended = wire.connect_to_end() => is_reset(&ended),
            };
            lots.push(hit);
        }
        let hits = lots.iter().filter(|hit| **hit).count();
        assert!((16..=48).contains(&hits), "{hits} of 64");
        seen.push(lots);
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn refused_is_who_comes_until_somebody_listens_again() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    wire.set(Fault::Refuse).await;
    let refused = wire.connect().await.expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    exchange(&mut client, &mut server).await;
    wire.clear().await;
    let (mut client, mut server) = wire.pair().await;
    exchange(&mut client, &mut server).await;
    assert_eq!(wire.applied("refuse").await, 1);
}

#[tokio::test]
async fn a_target_that_is_away_is_a_reset() {
    let mut wire = Wire::new().await;
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    drop(std::mem::replace(&mut wire.target, elsewhere));
    let ended = wire.connect_to_end().await;
    assert!(is_reset(&ended), "{ended:?}");
    assert_eq!(wire.counters().await.unreached, 1);
}

#[tokio::test]
async fn half_closed_the_other_way_goes_on() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    exchange(&mut client, &mut server).await;
    wire.set(Fault::HalfClose.up()).await;
    let (got, ended) = rest(&mut server).await;
    assert_eq!((got.len(), ended.unwrap()), (0, 0));
    send(&mut server, b"still here").await;
    assert_eq!(receive(&mut client, 10).await, b"still here");
    assert_eq!(wire.applied("half_close").await, 1);
}

#[tokio::test]
async fn cut_after_so_many_bytes_both_ends_see_the_end() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    let cut = Fault::Cut {
        after: 1000,
        reset: false,
    };
    wire.set(cut.down()).await;
    // More than fits between: who sends is heard out, or its end would not be in good order.
    let bytes = pattern(4 << 20);
    let ((got, ended), ()) = tokio::join!(rest(&mut client), send(&mut server, &bytes));
    assert_eq!(got, pattern(1000));
    ended.unwrap();
    rest(&mut server).await.1.unwrap();
    assert_eq!(wire.applied("cut").await, 1);
}

#[tokio::test]
async fn cut_by_reset_is_a_reset() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    let cut = Fault::Cut {
        after: 1000,
        reset: true,
    };
    wire.set(cut.up()).await;
    send(&mut client, &pattern(999)).await;
    assert_eq!(receive(&mut server, 999).await, pattern(999));
    send(&mut client, b"!").await;
    for end in [&mut client, &mut server] {
        let (_, ended) = rest(end).await;
        assert!(is_reset(&ended), "{ended:?}");
    }
}

#[tokio::test]
async fn flapping_faults_come_and_go() {
    let wire = Wire::new().await;
    wire.set(Fault::Flap {
        up_ms: 150,
        down_ms: 150,
    })
    .await;
    wire.set(Fault::Refuse).await;
    wire.set(Fault::reset_once()).await;
    for turn in 0..2 {
        let mut client = eventually("a connect goes well", || async {
            wire.connect().await.map_err(|error| error.to_string())
        })
        .await;
        // It is reset when the next turn begins.
        let (_, ended) = rest(&mut client).await;
        assert!(is_reset(&ended), "{turn}: {ended:?}");
        eventually("a connect is refused", || async {
            match wire.connect().await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    assert!(wire.applied("flap").await >= 2);
    wire.clear().await;
    let mut client = wire.connect().await.unwrap();
    send(&mut client, b"to").await;
    loop {
        // Those before it have ended.
        let (mut server, _) = within("it is served", wire.target.accept()).await.unwrap();
        let mut got = [0; 2];
        if within("bytes", server.read_exact(&mut got)).await.is_ok() {
            assert_eq!(&got, b"to");
            return;
        }
    }
}

#[tokio::test]
async fn a_removed_route_is_gone_and_its_connections_with_it() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    wire.proxy.remove("wire").await;
    let refused = wire.connect().await.expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for end in [&mut client, &mut server] {
        let (_, ended) = rest(end).await;
        assert!(is_reset(&ended), "{ended:?}");
    }
}

#[tokio::test]
async fn the_proxy_ends_well_in_the_middle_of_everything() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.pair().await;
    exchange(&mut client, &mut server).await;
    wire.set(Fault::latency(60_000)).await;
    send(&mut client, &pattern(100_000)).await;
    let site = wire.site;
    FaultProxy::end(wire.proxy).await;
    let (_, ended) = within("it ends", rest(&mut client)).await;
    assert!(is_reset(&ended), "{ended:?}");
    assert!(site.mark.processes().is_empty());
}

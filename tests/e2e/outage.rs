//! What is away for a while: the mesh goes on without it, and is whole when it is back.

use crate::support::{
    client,
    load::Load,
    mesh::{Site, agent},
    wait::eventually,
};

#[tokio::test]
async fn a_load_on_a_healthy_mesh_is_clean() {
    let site =
        Site::new(&(agent("home", &["test.home"], "") + &agent("worker", &["test.echo"], "")));
    let up = site.up(&[]).await;
    let home = client::local(&up.instance("default/home", 0).local);
    let load = Load::start(home, 4);
    eventually("tasks are done", || async {
        match load.count().completed {
            50.. => Ok(()),
            few => Err(format!("{few}")),
        }
    })
    .await;
    let outcome = load.stop().await;
    outcome.clean();
    let count = outcome.count;
    assert_eq!(
        (count.unknown, count.refused, count.breaks, count.sent_away),
        (0, 0, 0, 0)
    );
}

//! The surroundings of a daemon in the lab: the metadata service and the APIs as stubs on the loopback interface of its
//! network namespace.

use std::fs::File;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use crate::environment;
use crate::fleet::Fleet;
use crate::http::serve;
use crate::imds::{self, Tree};
use crate::lab::{DEADLINE, Egret, Host, Result};

/// What the stubs tell, to be changed and looked at while they run.
pub struct Site {
    tree: Arc<Mutex<Tree>>,
    fleet: Arc<Mutex<Fleet>>,
    environment: Vec<String>,
    /// Dropped, it ends the stubs.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Site {
    /// The stubs, in the host's namespace.
    pub fn start(host: &Host) -> Result<Self> {
        let mac = imds::MAC.map(|octet| format!("{octet:02x}")).join(":");
        host.run("ip link set lo up")?;
        host.run(&format!("ip link set ens5 address {mac}"))?;
        let tree = Arc::new(Mutex::new(environment::tree()));
        let fleet = Arc::<Mutex<Fleet>>::default();
        let namespace = File::open(format!("/run/netns/{}", host.namespace))?;
        let (stop, stopped) = oneshot::channel();
        let (told, addresses) = mpsc::channel();
        let stubs = (Arc::clone(&tree), Arc::clone(&fleet));
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (tree, fleet) = stubs;
                let imds = serve(move |request| imds::answer(&tree.lock().unwrap(), request));
                let api = serve(move |request| fleet.lock().unwrap().answer(request));
                told.send((imds.await, api.await)).unwrap();
                let _ = stopped.await;
            });
        });
        let (imds, api) = addresses.recv_timeout(DEADLINE)?;
        let environment = vec![
            "env".to_owned(),
            "HOME=/nonexistent".to_owned(),
            format!("AWS_EC2_METADATA_SERVICE_ENDPOINT=http://{imds}"),
            format!("AWS_ENDPOINT_URL=http://{api}"),
        ];
        Ok(Self { tree, fleet, environment, stop: Some(stop), thread: Some(thread) })
    }

    pub fn spawn(&self, host: &Host, toml: &str) -> Result<Egret> {
        let wrapper: Vec<&str> = self.environment.iter().map(String::as_str).collect();
        Egret::spawn_under(host, toml, &wrapper)
    }

    /// Has the metadata service tell something else at a path, or nothing.
    pub fn tell(&self, path: &str, text: Option<&str>) {
        let mut tree = self.tree.lock().unwrap();
        match text {
            Some(text) => tree.insert(path.to_owned(), text.to_owned()),
            None => tree.remove(path),
        };
    }

    pub fn fleet<T>(&self, look: impl FnOnce(&mut Fleet) -> T) -> T {
        look(&mut self.fleet.lock().unwrap())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! A balancer that chooses by the client's port, and keeps books.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use egret::nat::{Answer, Balancer, Closed, Refusal};
use egret::time::Instant;
use egret::wire::Endpoint;

use super::ep;

/// See the module. Its books are shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct ByPort {
    books: Arc<Mutex<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    /// By service and target.
    open: HashMap<(Endpoint, Endpoint), u32>,
    selected: u32,
    /// Every so many choices, all connections of that target are to end; 0: never.
    cut_every: u32,
    cut: Option<(Endpoint, Endpoint)>,
}

impl ByPort {
    pub fn cutting(every: u32) -> Self {
        let books = Books { cut_every: every, ..Books::default() };
        Self { books: Arc::new(Mutex::new(books)) }
    }

    /// Connections that have not been closed.
    pub fn open(&self) -> u32 {
        self.books.lock().expect("not poisoned").open.values().sum()
    }
}

impl Balancer for ByPort {
    fn select(
        &mut self,
        _: Instant,
        service: Endpoint,
        client: Endpoint,
        avoid: Option<Endpoint>,
    ) -> Result<Endpoint, Refusal> {
        let mut books = self.books.lock().expect("not poisoned");
        let mut targets = [ep("10.0.0.2:4000"), ep("10.0.0.3:4000")];
        targets.rotate_left(usize::from(client.port % 2));
        let target = if Some(targets[0]) == avoid { targets[1] } else { targets[0] };
        *books.open.entry((service, target)).or_default() += 1;
        books.selected += 1;
        if books.cut_every > 0 && books.selected.is_multiple_of(books.cut_every) {
            books.cut = Some((service, target));
        }
        Ok(target)
    }

    fn is_full_for(&mut self, _: Endpoint, _: Endpoint) -> bool {
        false
    }

    fn handle_answer(&mut self, _: Instant, service: Endpoint, target: Endpoint, _: Answer) {
        assert!(self.books.lock().expect("not poisoned").open[&(service, target)] > 0);
    }

    fn handle_closed(&mut self, _: Instant, service: Endpoint, target: Endpoint, _: Option<&Closed>) {
        let mut books = self.books.lock().expect("not poisoned");
        let open = books.open.get_mut(&(service, target)).expect("a connection that was opened");
        *open = open.checked_sub(1).expect("closed as often as opened");
    }

    fn poll_cut(&mut self) -> Option<(Endpoint, Endpoint)> {
        self.books.lock().expect("not poisoned").cut.take()
    }

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        self.books.lock().expect("not poisoned").cut.map(|_| Instant::ORIGIN)
    }
}

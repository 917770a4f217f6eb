//! A proxy that cuts connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Passes bytes on between clients and a broker, and cuts each connection after so many bytes of
/// the client, or when told to.
pub struct CuttingProxy {
    pub address: String,
    pub cuts: Arc<AtomicU64>,
    /// Cuts nothing more.
    pub calm: Arc<AtomicBool>,
}

impl CuttingProxy {
    pub fn start(broker: SocketAddr, bytes_max: u64) -> CuttingProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (cuts, calm) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let proxy = CuttingProxy { address, cuts: Arc::clone(&cuts), calm: Arc::clone(&calm) };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(broker).unwrap());
                let (cuts, calm) = (Arc::clone(&cuts), Arc::clone(&calm));
                // Another length each time, so that cuts fall everywhere in frames.
                let bytes_max = bytes_max + cuts.load(Ordering::Relaxed) * 7919 % 4096;
                let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || pass(from, to, u64::MAX, None));
                std::thread::spawn(move || pass(client, server, bytes_max, Some((cuts, calm))));
            }
        });
        proxy
    }
}

type Cutter = (Arc<AtomicU64>, Arc<AtomicBool>);

fn pass(mut from: TcpStream, mut to: TcpStream, bytes_max: u64, cutter: Option<Cutter>) {
    let mut buffer = vec![0; 4096];
    let mut passed = 0;
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
        passed += bytes as u64;
        if let Some((cuts, calm)) = &cutter
            && passed >= bytes_max
            && !calm.load(Ordering::Relaxed)
        {
            cuts.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

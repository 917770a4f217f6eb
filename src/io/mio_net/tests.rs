//! Against real sockets on loopback. Waits have no deadline of their own: what never comes hangs,
//! and the test runner says so.

use super::*;
use std::net::{Ipv4Addr, TcpStream as Peer};

fn net() -> (MioNet, SocketAddr) {
    let net = MioNet::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = net.address().unwrap();
    (net, address)
}

/// Polls until `wanted` has picked an event; others are dropped.
fn wait<T>(net: &mut MioNet, wanted: impl Fn(&NetEvent) -> Option<T>) -> T {
    let mut events = Vec::new();
    loop {
        net.poll(None, &mut events).unwrap();
        if let Some(found) = events.iter().find_map(&wanted) {
            return found;
        }
        events.clear();
    }
}

fn accept(net: &mut MioNet) -> Socket {
    loop {
        match net.accept() {
            Accepted::Socket(socket, _) => return socket,
            Accepted::Nothing => {
                wait(net, |event| (*event == NetEvent::Acceptable).then_some(()));
            }
            other => panic!("{other:?}"),
        }
    }
}

fn pair(net: &mut MioNet, address: SocketAddr) -> (Socket, Peer) {
    let peer = Peer::connect(address).unwrap();
    (accept(net), peer)
}

/// Reads until the outcome is not bytes; with what came before.
fn read_out(net: &mut MioNet, socket: Socket) -> (Vec<u8>, ReadOutcome) {
    let (mut all, mut buffer) = (Vec::new(), [0; 7]);
    loop {
        match net.read(socket, &mut buffer) {
            ReadOutcome::Bytes(bytes) => all.extend_from_slice(&buffer[..bytes]),
            other => return (all, other),
        }
    }
}

fn readable(socket: Socket) -> impl Fn(&NetEvent) -> Option<bool> {
    move |event| match event {
        NetEvent::Readable { socket: of, closed } if *of == socket => Some(*closed),
        _ => None,
    }
}

/// What is ready now, without waiting.
fn ready(net: &mut MioNet) -> Vec<NetEvent> {
    let mut events = Vec::new();
    net.poll(Some(Duration::ZERO), &mut events).unwrap();
    events
}

#[test]
fn bytes_go_both_ways_and_the_end_is_told() {
    let (mut net, address) = net();
    let (socket, mut peer) = pair(&mut net, address);
    peer.write_all(b"there and").unwrap();
    wait(&mut net, readable(socket));
    assert_eq!(read_out(&mut net, socket), (b"there and".to_vec(), ReadOutcome::Nothing));
    let slices = [IoSlice::new(b" back"), IoSlice::new(b""), IoSlice::new(b" again")];
    assert_eq!(net.write(socket, &slices), WriteOutcome::Bytes(11));
    assert_eq!(net.write(socket, &[]), WriteOutcome::Bytes(0));
    peer.write_all(b"last").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    while !wait(&mut net, readable(socket)) {}
    assert_eq!(read_out(&mut net, socket), (b"last".to_vec(), ReadOutcome::Closed));
    net.close(socket);
    let mut text = String::new();
    peer.read_to_string(&mut text).unwrap();
    assert_eq!(text, " back again");
}

#[test]
fn an_address_in_use_is_an_error() {
    let (_net, address) = net();
    let error = MioNet::bind(address).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
}

#[test]
fn room_is_told_only_to_those_who_wait_for_it() {
    let (mut net, address) = net();
    let (socket, mut peer) = pair(&mut net, address);
    let (other, mut other_peer) = pair(&mut net, address);
    let block = vec![7; 1 << 20];
    let mut sent = 0;
    let mut was_short = false;
    while !was_short {
        match net.write(socket, &[IoSlice::new(&block)]) {
            WriteOutcome::Bytes(bytes) => {
                sent += bytes;
                was_short = bytes < block.len();
            }
            WriteOutcome::Nothing => was_short = true,
            WriteOutcome::Failed(kind) => panic!("{kind}"),
        }
    }
    other_peer.write_all(b"x").unwrap();
    let unasked = |event: &NetEvent| *event == NetEvent::Writable(other);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    let mut events = Vec::new();
    while !events.contains(&NetEvent::Writable(socket)) {
        net.poll(None, &mut events).unwrap();
    }
    assert!(!events.iter().any(unasked));
    assert_eq!(net.write(socket, &[IoSlice::new(b"end")]), WriteOutcome::Bytes(3));
    net.close(socket);
    let all = reader.join().unwrap();
    assert_eq!(all.len(), sent + 3);
    assert!(all.ends_with(b"\x07end"));
}

#[test]
fn more_slices_than_one_call_takes_go_out_whole() {
    let (mut net, address) = net();
    let (socket, mut peer) = pair(&mut net, address);
    let bytes: Vec<u8> = (0..5000u32).map(|nth| nth as u8).collect();
    let slices: Vec<IoSlice<'_>> = bytes.chunks(1).map(IoSlice::new).collect();
    assert_eq!(net.write(socket, &slices), WriteOutcome::Bytes(5000));
    net.close(socket);
    let mut all = Vec::new();
    peer.read_to_end(&mut all).unwrap();
    assert_eq!(all, bytes);
}

#[test]
fn another_thread_wakes_the_poll_before_or_while_it_waits() {
    let (mut net, _) = net();
    let woken = |event: &NetEvent| (*event == NetEvent::Woken).then_some(());
    net.waker().wake();
    wait(&mut net, woken);
    assert!(ready(&mut net).is_empty());
    let waker = net.waker();
    let thread = std::thread::spawn(move || waker.wake());
    wait(&mut net, woken);
    thread.join().unwrap();
}

#[test]
fn a_number_is_used_again_only_after_the_next_poll() {
    let (mut net, address) = net();
    let (first, peer) = pair(&mut net, address);
    drop(peer);
    while !wait(&mut net, readable(first)) {}
    assert_eq!(net.read(first, &mut [0; 1]), ReadOutcome::Closed);
    let _other_peer = Peer::connect(address).unwrap();
    wait(&mut net, |event| (*event == NetEvent::Acceptable).then_some(()));
    net.close(first);
    let Accepted::Socket(second, _) = net.accept() else { panic!("one waits") };
    assert_ne!(first, second);
    ready(&mut net);
    let (third, _peer) = pair(&mut net, address);
    assert_eq!(first, third);
}

#[test]
fn the_last_word_reaches_a_peer_that_goes_on_talking() {
    let (mut net, address) = net();
    for _ in 0..20 {
        let (socket, mut peer) = pair(&mut net, address);
        peer.write_all(&[1; 1000]).unwrap();
        wait(&mut net, readable(socket));
        assert_eq!(net.write(socket, &[IoSlice::new(b"because")]), WriteOutcome::Bytes(7));
        // Unread bytes lie in the socket: a plain close would reset the connection.
        net.close(socket);
        peer.write_all(&[2; 1000]).unwrap();
        ready(&mut net);
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "because");
    }
}

#[test]
fn a_peer_that_never_ends_is_not_heard_for_ever() {
    let (mut net, address) = net();
    let (silent, peer) = pair(&mut net, address);
    net.close(silent);
    let (loud, mut shouting) = pair(&mut net, address);
    assert_ne!(silent, loud);
    net.close(loud);
    let thread = std::thread::spawn(move || {
        let block = vec![0; 1 << 16];
        // It ends with an error: the broker has closed.
        while shouting.write_all(&block).is_ok() {}
    });
    net.finish(60_000);
    thread.join().unwrap();
    assert!(net.slots.iter().all(|slot| matches!(slot, Slot::Free)));
    drop(peer);
}

#[test]
fn nobody_is_accepted_after_listening_has_stopped() {
    let (mut net, address) = net();
    let (socket, mut peer) = pair(&mut net, address);
    net.stop_listening();
    assert_eq!(net.accept(), Accepted::Nothing);
    assert!(Peer::connect(address).is_err());
    assert!(net.address().is_err());
    peer.write_all(b"x").unwrap();
    wait(&mut net, readable(socket));
    assert_eq!(net.read(socket, &mut [0; 8]), ReadOutcome::Bytes(1));
}

#[test]
fn connections_are_without_delay_and_with_keepalive() {
    let (mut net, address) = net();
    let (socket, _peer) = pair(&mut net, address);
    let options = SockRef::from(&net.connection(socket).stream);
    assert!(options.tcp_nodelay().unwrap());
    assert!(options.keepalive().unwrap());
    assert_eq!(options.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
}

#[test]
fn a_reset_is_told_as_failed() {
    let (mut net, address) = net();
    let (socket, peer) = pair(&mut net, address);
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    while !wait(&mut net, readable(socket)) {}
    let outcome = net.read(socket, &mut [0; 8]);
    assert_eq!(outcome, ReadOutcome::Failed(ErrorKind::ConnectionReset));
    let outcome = net.write(socket, &[IoSlice::new(b"x")]);
    assert!(matches!(outcome, WriteOutcome::Failed(_)), "{outcome:?}");
    net.close(socket);
}

#[test]
fn several_nets_share_a_port_and_no_other_process_may() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut nets = MioNet::bind_many(address, 3).unwrap();
    let address = nets[0].address().unwrap();
    assert!(nets.iter().all(|net| net.address().unwrap() == address));
    let refused = MioNet::bind_many(address, 3).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::AddrInUse));
    // Whoever gets a connection, somebody does.
    let peers: Vec<Peer> = (0..32).map(|_| Peer::connect(address).unwrap()).collect();
    let mut accepted = 0;
    while accepted < peers.len() {
        for net in &mut nets {
            while let Accepted::Socket(..) = net.accept() {
                accepted += 1;
            }
        }
    }
}

#[test]
fn a_socket_moves_to_another_net_with_all_that_comes_for_it() {
    let (mut first, address) = net();
    let (mut second, _) = net();
    let (socket, mut peer) = pair(&mut first, address);
    peer.write_all(b"before").unwrap();
    wait(&mut first, readable(socket));
    let mut buffer = [0; 3];
    assert_eq!(first.read(socket, &mut buffer), ReadOutcome::Bytes(3));
    let detached = first.release(socket).expect("it was open");
    peer.write_all(b" after").unwrap();
    let thread = std::thread::spawn(move || {
        let moved = second.adopt(detached).expect("the system takes it");
        wait(&mut second, readable(moved));
        let mut got = Vec::new();
        while got.len() < 9 {
            match second.read(moved, &mut buffer) {
                ReadOutcome::Bytes(bytes) => got.extend_from_slice(&buffer[..bytes]),
                ReadOutcome::Nothing => {
                    wait(&mut second, readable(moved));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(second.write(moved, &[IoSlice::new(b"answer")]), WriteOutcome::Bytes(6));
        got
    });
    assert_eq!(thread.join().unwrap(), b"ore after");
    let mut answer = [0; 6];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

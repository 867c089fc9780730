use super::{Decoder, Encoder, Fields, Fit, Limits};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

fn shown(fields: &Fields) -> String {
    fields
        .iter()
        .map(|field| {
            let text = |octets| String::from_utf8_lossy(octets).into_owned();
            format!("{}: {}\n", text(field.name), text(field.value))
        })
        .collect()
}

#[test]
fn smoke() {
    let mut decoder = Decoder::new(4096);
    let mut fields = Fields::new();
    let block = bytes("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
    let fit = decoder.decode(&block, &Limits::default(), &mut fields);
    assert_eq!(fit, Ok(Fit::Whole));
    assert_eq!(
        shown(&fields),
        ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n"
    );
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let mut fields = Fields::new();
    fields.push(b"x-thing", b"some value with \x00\xff bytes");
    fields.push(b":status", b"200");
    fields.push(b"content-type", b"application/grpc");
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let (mut out, mut again) = (Vec::new(), Fields::new());
        encoder.encode(&fields, &mut out);
        let fit = decoder.decode(&out, &Limits::default(), &mut again);
        assert_eq!(fit, Ok(Fit::Whole));
        assert_eq!(shown(&again), shown(&fields));
        sizes.push(out.len());
    }
    assert_eq!(sizes[3], 3);
}

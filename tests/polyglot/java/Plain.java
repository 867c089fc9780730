import static io.grpc.MethodDescriptor.MethodType.UNARY;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.HexFormat;
import java.util.concurrent.TimeUnit;

/**
 * One call with nothing but grpc-java and no option: what comes back, or the status.
 *
 * <p>{@code java -cp 'LIBRARIES/*' Plain.java TARGET METHOD [KEY=VALUE ...]}
 *
 * <p>The request is empty; the answer is printed as hexadecimal digits.
 */
public final class Plain {
  private static final MethodDescriptor.Marshaller<byte[]> BYTES =
      new MethodDescriptor.Marshaller<>() {
        @Override
        public InputStream stream(byte[] value) {
          return new ByteArrayInputStream(value);
        }

        @Override
        public byte[] parse(InputStream stream) {
          try {
            return stream.readAllBytes();
          } catch (IOException error) {
            throw new IllegalStateException(error);
          }
        }
      };

  public static void main(String[] arguments) throws Exception {
    Metadata metadata = new Metadata();
    for (int place = 2; place < arguments.length; place++) {
      String[] pair = arguments[place].split("=", 2);
      metadata.put(Metadata.Key.of(pair[0], Metadata.ASCII_STRING_MARSHALLER), pair[1]);
    }
    ManagedChannel connection =
        Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create()).build();
    Channel channel =
        ClientInterceptors.intercept(
            connection, MetadataUtils.newAttachHeadersInterceptor(metadata));
    String method = arguments[1].substring(1);
    MethodDescriptor<byte[], byte[]> call =
        MethodDescriptor.newBuilder(BYTES, BYTES).setType(UNARY).setFullMethodName(method).build();
    CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(20, TimeUnit.SECONDS);
    try {
      byte[] answer = ClientCalls.blockingUnaryCall(channel, call, options, new byte[0]);
      System.out.println("OK " + HexFormat.of().formatHex(answer));
    } catch (StatusRuntimeException error) {
      System.out.println(error.getStatus().getCode() + " " + error.getStatus().getDescription());
    } finally {
      connection.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }
}

#ifndef SLUICE_RUNTIME_SERVICE_CLIENT_H_
#define SLUICE_RUNTIME_SERVICE_CLIENT_H_
// Talks to `sluice serve`. Not thread-safe: one client a thread.
#include <chrono>
#include <memory>
#include <string>
#include <zmq.hpp>

#include "absl/status/statusor.h"
#include "sluice/runtime/service/allow_list.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
class Client {
 public:
  struct Options {
    std::chrono::milliseconds timeout{2000};  // of one try
    int tries = 3;           // Feedback and reads may be repeated safely; Route is sent once
    std::string server_key;  // CURVE: the server's public key, Z85
    CurveKeys keys;          // and our own
  };
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& endpoint, Options);
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& endpoint) {
    return Connect(endpoint, Options{});
  }

  // Sends the body and waits for its answer. An error of the server comes back as a status with its
  // text. Without a deadline of its own the request's is that of the try: what was given up is not
  // done when a server comes back.
  absl::StatusOr<v1::Response> Call(v1::Request request);
  absl::StatusOr<v1::Decision> Route(const v1::Query&);
  absl::StatusOr<v1::FeedbackResult> Feedback(const v1::Outcome&);
  // Pipelining: send now, receive in any order.
  absl::Status Send(v1::Request& request);  // fills version and request id
  absl::StatusOr<v1::Response> Receive(std::chrono::milliseconds timeout);

 private:
  Client() = default;
  zmq::context_t context_{1};
  zmq::socket_t socket_;
  Options options_;
  uint64_t next_ = 1;
};
absl::Status StatusOf(const v1::Error&);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_CLIENT_H_

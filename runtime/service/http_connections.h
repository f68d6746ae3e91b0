#ifndef SLUICE_RUNTIME_SERVICE_HTTP_CONNECTIONS_H_
#define SLUICE_RUNTIME_SERVICE_HTTP_CONNECTIONS_H_
// Connections of the HTTP side. One thread holds all those that are idle or still say what they
// want; a thread of a lane gets a request once it is there as a whole. So neither silence nor
// slowness holds a thread, and the lanes do not wait for each other: probes have one of their own.
// HTTP itself is read and written by cpp-httplib.
#include <httplib.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
enum class HttpLane { kAtOnce, kWatch, kDecide };  // needs nobody; asks the server; may be many

class HttpConnections {
 public:
  struct Options {
    std::string host;
    int port = 0;
    std::function<HttpLane(absl::string_view target)> lane;
    // Called by many threads at once. `q.body` is whole, `q.remote_addr` the peer's address.
    std::function<void(const httplib::Request& q, httplib::Response& r)> answer;
  };
  static absl::StatusOr<std::unique_ptr<HttpConnections>> Open(Options options);
  virtual ~HttpConnections() = default;
};

// The request at the front of what a connection said.
struct HttpShape {
  enum State { kIncomplete, kWhole, kBad };
  State state = kIncomplete;
  size_t head = 0;  // bytes, with the empty line
  size_t body = 0;
  bool expects = false;  // to be told to go on before it sends the body
  int status = 0;        // of a bad one
  std::string why;
};
HttpShape MeasureHttp(absl::string_view bytes);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_HTTP_CONNECTIONS_H_

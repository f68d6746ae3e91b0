#ifndef SLUICE_RUNTIME_SERVICE_HTTP_H_
#define SLUICE_RUNTIME_SERVICE_HTTP_H_
// Operability over HTTP: /metrics (Prometheus text), /healthz, /readyz, a page, and the JSON that
// the page reads. Read-only; every answer comes from the server through a client of its own, so
// nothing is shared with the serving thread.
#include <memory>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "absl/status/statusor.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class HttpServer {
 public:
  // Requests must call the server by an address, as localhost or by one of `names`, and may not
  // come from pages of others: a name that an attacker points here is not enough to read from it.
  struct Options {
    std::string host;
    int port = 0;
    std::vector<std::string> names;
    std::string identity;  // what its sockets' identities begin with
  };
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const Options& options,
                                                           zmq::context_t& context,
                                                           const std::string& endpoint);
  virtual ~HttpServer() = default;
  virtual int port() const = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_HTTP_H_

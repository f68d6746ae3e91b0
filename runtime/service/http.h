#ifndef SLUICE_RUNTIME_SERVICE_HTTP_H_
#define SLUICE_RUNTIME_SERVICE_HTTP_H_
// The sidecar over HTTP: decisions and feedback as JSON (/v1), /metrics (Prometheus text),
// /healthz, /readyz, a page, and the JSON that the page reads. What an answer is made of comes from
// whom it is told to ask, in the thread of the connection.
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/api/version.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
class HttpServer {
 public:
  // Requests must call the server by an address, as localhost or by one of `names`, and may not
  // come from pages of others: a name that an attacker points here is not enough to read from it.
  struct Options {
    std::string host;
    int port = 0;
    std::vector<std::string> names;
    // Answers a request, or says in the response why there is no answer, within that time; called
    // by many threads at once.
    std::function<v1::Response(const v1::Request&, std::chrono::milliseconds)> ask = {};
    // Bearer keys (http_keys.h) of all requests but probes and the page. "": none are asked for,
    // and only this machine may use /v1.
    std::string key_file = {};
    // What the upstream calls an agent's model; called by many threads at once. None: its id.
    std::function<std::string(const std::string& agent)> model_of = {};
  };
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const Options& options);
  virtual ~HttpServer() = default;
  virtual int port() const = 0;

  struct Route {
    std::string method, path;
  };
  static std::vector<Route> Routes();
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_HTTP_H_

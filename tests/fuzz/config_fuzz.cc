// Any text: a router spec must give a router or an error; what was read prints back to the same
// config.
#include <cstdlib>

#include "sluice/policies/compose/attention.h"
#include "sluice/routers/builtin.h"

namespace {
struct Config {
  int64_t k = 1;
  double p = 0.5;
  bool on = false;
  template <class V>
  void VisitFields(V&& v) {
    v("k", k, sluice::Range<int64_t>{-1000, int64_t{1} << 62}, "an integer");
    v("p", p, sluice::Range<double>{-1e300, 1e300}, "a number");
    v("on", on, sluice::Range<bool>{false, true}, "a switch");
  }
};
}  // namespace
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)sluice::BuiltinRouters().attention.Create(text);
  (void)sluice::MakeAttentionPolicy(text, sluice::BuiltinRouters().attention);
  const auto spec = sluice::ParseSpec(text);
  Config c;
  if (!spec.ok() || !sluice::ReadConfig(spec->options, c).ok()) return 0;
  Config back;
  const std::string printed = "x:" + sluice::PrintConfig(c);
  const auto again = sluice::ParseSpec(printed);
  if (!again.ok() || !sluice::ReadConfig(again->options, back).ok() || back.k != c.k ||
      back.p != c.p || back.on != c.on)
    std::abort();
  return 0;
}

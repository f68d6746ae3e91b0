// Routers, executor, loader and service out of the installed libraries.
#include <cstdio>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dynload/plugin_library.h"
#include "sluice/runtime/service/config.h"

int main(int argc, char** argv) {
  using namespace sluice;
  if (!BuiltinRouters().attention.Create("mean_pool:k=4").ok()) return 1;
  if (!Attend::Create({.max_queries = 4,
                       .max_kv = 64,
                       .heads = 2,
                       .kv_heads = 1,
                       .head_dim = 8,
                       .value_dim = 8})
           .ok())
    return 2;
  if (MakeTbbExecutor(2)->num_workers() != 2) return 3;
  if (ParseSettings("nonsense: 1", "test").ok()) return 4;
  Registry r;
  if (argc > 1) {
    const auto info = LoadPlugin(argv[1], r);
    if (!info.ok()) {
      std::printf("%s\n", std::string(info.status().message()).c_str());
      return 5;
    }
    if (!r.attention.Create("strided:stride=3").ok()) return 6;
  }
  return 0;
}

// What a plug-in file says of itself is read from bytes that anybody may have written.
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "sluice/runtime/dynload/plugin_library.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // An ELF header is laid over most inputs, so that what lies behind it is reached.
  std::string bytes(reinterpret_cast<const char*>(data), size);
  if (size > sizeof(Elf64_Ehdr) && data[0] % 8 != 0) {
    Elf64_Ehdr e;
    std::memcpy(&e, bytes.data(), sizeof e);
    std::memcpy(e.e_ident, ELFMAG, SELFMAG);
    e.e_ident[EI_CLASS] = ELFCLASS64;
    e.e_shentsize = sizeof(Elf64_Shdr);
    if (data[0] % 8 > 1) {
      e.e_shnum %= 16;
      e.e_shoff %= size;
      e.e_shstrndx %= 8;
    }
    std::memcpy(bytes.data(), &e, sizeof e);
  }
  const int file = memfd_create("plugin", 0);
  if (file < 0 || write(file, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
    return 0;
  (void)sluice::ReadPluginManifest("/proc/self/fd/" + std::to_string(file));
  close(file);
  return 0;
}

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "sluice/api/abi/sluice_abi.h"
#define MANIFEST(text) \
  __attribute__((section(SLUICE_MANIFEST_SECTION), used)) const char manifest[] = text;
/* Plug-ins that must be refused, one a BAD number. */
#if BAD == 0 /* no_manifest */
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#elif BAD == 1               /* future_major */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=3.0\nmin_host_minor=0\n")
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  abort();
}
#elif BAD == 2               /* future_minor */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.9\nmin_host_minor=9\n")
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  abort();
}
#elif BAD == 3               /* odd_manifest */
MANIFEST("sluice-plugin 7\n")
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  abort();
}
#elif BAD == 4               /* no_entry */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
int other(void) { return 1; }
#elif BAD == 5               /* null_entry */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#elif BAD == 6               /* short_record */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
static const size_t record = 16;
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return (const sluice_plugin_v1*)&record;
}
#elif BAD == 7               /* wrong_magic */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
static const sluice_plugin_v1 p = {
    sizeof(sluice_plugin_v1), 7, SLUICE_ABI_MAJOR, 0, 0, "x", "1", 0, NULL, 0, NULL, 0, NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 8               /* null_table */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
static const sluice_plugin_v1 p = {sizeof(sluice_plugin_v1),
                                   SLUICE_PLUGIN_MAGIC,
                                   SLUICE_ABI_MAJOR,
                                   0,
                                   0,
                                   "x",
                                   "1",
                                   1,
                                   NULL,
                                   0,
                                   NULL,
                                   0,
                                   NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 9               /* null_function */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
static const sluice_attention_traits named = {
    .struct_size = sizeof named, .name = "hole", .stages = 1};
static const sluice_attention_router_v2 r = {.struct_size = sizeof r, .traits = &named};
static const sluice_attention_router_v2* const t[] = {&r};
static const sluice_plugin_v1 p = {sizeof(sluice_plugin_v1),
                                   SLUICE_PLUGIN_MAGIC,
                                   SLUICE_ABI_MAJOR,
                                   0,
                                   0,
                                   "x",
                                   "1",
                                   0,
                                   NULL,
                                   1,
                                   t,
                                   0,
                                   NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 10              /* short_table */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
static const sluice_attention_traits named = {
    .struct_size = sizeof named, .name = "short", .stages = 1};
static const sluice_attention_router_v2 r = {.struct_size = 24, .traits = &named};
static const sluice_attention_router_v2* const t[] = {&r};
static const sluice_plugin_v1 p = {sizeof(sluice_plugin_v1),
                                   SLUICE_PLUGIN_MAGIC,
                                   SLUICE_ABI_MAJOR,
                                   0,
                                   0,
                                   "x",
                                   "1",
                                   0,
                                   NULL,
                                   1,
                                   t,
                                   0,
                                   NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 11              /* null_agents */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
static const sluice_plugin_v1 p = {sizeof(sluice_plugin_v1),
                                   SLUICE_PLUGIN_MAGIC,
                                   SLUICE_ABI_MAJOR,
                                   0,
                                   0,
                                   "x",
                                   "1",
                                   0,
                                   NULL,
                                   0,
                                   NULL,
                                   2,
                                   NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return &p;
}
#elif BAD == 12              /* crashes */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
__attribute__((constructor)) static void crash(void) { abort(); }
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#elif BAD == 13              /* exits */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
__attribute__((constructor)) static void leave(void) { _Exit(3); }
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#elif BAD == 14              /* sleeps */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
__attribute__((constructor)) static void sleep_for_ever(void) {
  while (1) pause();
}
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#elif BAD == 15              /* sleeps_in_entry */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  while (1) pause();
}
#elif BAD == 16              /* forks: a process that keeps open whatever it inherited */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
__attribute__((constructor)) static void leave_one_behind(void) {
  if (fork() == 0) {
    while (1) pause();
  }
}
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  return NULL;
}
#elif BAD == 17 || BAD == 18 /* forges, forges_in_entry: says on every descriptor that it passed \
                              */
MANIFEST("sluice-plugin 1\nname=x\nversion=1\nabi=2.0\nmin_host_minor=0\n")
static void forge(void) {
  for (int fd = 0; fd < 1024; ++fd) {
    if (fd != STDERR_FILENO && write(fd, "+attention/forged\n", 18) < 0) continue;
  }
}
#if BAD == 17
__attribute__((constructor)) static void forge_and_leave(void) {
  forge();
  _Exit(0);
}
#endif
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t a, uint32_t b) {
  (void)a;
  (void)b;
  forge();
  return NULL;
}
#endif

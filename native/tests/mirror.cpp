// What Python and native code both decide, asked over a pipe: tests/test_mirror.py compares the answers.
//
// A line in, a line out, numbers apart by blanks:
//   plan <6 numbers of the model> <8 coefficients of the sizes> <budget> <process> <threads> <ctx> <ubatch>
//     -> n_ctx n_ubatch cache n_slot margin process smallest resident, or "small <smallest>"
//   stream <stop texts in hex, by commas, or -> <pieces in hex>...
//     -> what each piece brought and what was held back, in hex, "-" for nothing
#include "budget/planner.h"
#include "text/stream.h"

#include <cinttypes>
#include <cstdio>
#include <iostream>
#include <sstream>

using namespace emoe;

static std::string from_hex(const std::string &hex) {
    std::string bytes;
    if (hex == "-") return bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
        bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    return bytes;
}

static std::string to_hex(const std::string &bytes) {
    if (bytes.empty()) return "-";
    std::string hex;
    char two[3];
    for (char const c : bytes) {
        snprintf(two, sizeof two, "%02x", static_cast<unsigned char>(c));
        hex += two;
    }
    return hex;
}

static void plan(std::istream &in) {
    emoe_model_info m = {};
    uint64_t c[8] = {};
    Budget b;
    in >> m.n_ctx_train >> m.n_vocab >> m.dense_bytes >> m.slot_bytes >> m.slot_min_bytes >> m.n_expert_total;
    for (uint64_t &v : c) in >> v;
    in >> b.bytes >> b.process_bytes >> b.n_threads >> b.n_ctx >> b.n_ubatch;
    auto const sizes = [&](uint32_t n_ctx, uint32_t n_ubatch) {
        emoe_context_sizes s = {};
        s.kv_bytes = n_ctx * c[0];
        s.compute_bytes = n_ubatch * c[1] + uint64_t{n_ctx} * n_ubatch * c[2];
        s.output_bytes = c[3];
        s.scratch_bytes = n_ubatch * c[4];
        s.vocab_bytes = c[5];
        s.decode_bytes = c[6];
        s.prefill_bytes = n_ubatch * c[7];
        return s;
    };
    try {
        emoe_plan const p = make_plan(m, sizes, b);
        std::cout << p.n_ctx << ' ' << p.n_ubatch << ' ' << p.cache_bytes << ' ' << p.n_slot << ' ' << p.margin_bytes
                  << ' ' << p.process_bytes << ' ' << p.smallest_bytes << ' ' << p.resident_bytes << '\n';
    } catch (const BudgetError &e) {
        std::cout << "small " << e.smallest_bytes << '\n';
    }
}

static void stream(std::istream &in) {
    std::string stops, piece;
    in >> stops;
    std::vector<std::string> list;
    if (stops != "-") {
        std::istringstream each(stops);
        for (std::string stop; std::getline(each, stop, ',');) list.push_back(from_hex(stop));
    }
    TextStream text(list);
    while (in >> piece) {
        std::string const bytes = from_hex(piece);
        std::cout << to_hex(text.feed(bytes.data(), bytes.size())) << ' ';
    }
    std::cout << to_hex(text.finish()) << ' ' << text.stopped() << '\n';
}

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream in(line);
        std::string what;
        in >> what;
        if (what == "plan") plan(in);
        if (what == "stream") stream(in);
    }
}

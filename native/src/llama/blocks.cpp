#include "llama/blocks.h"

#include <ggml.h>

#include <cmath>
#include <cstring>
#include <map>

namespace emoe {

namespace {

float half_at(const uint8_t *raw) {
    ggml_fp16_t h = 0;
    std::memcpy(&h, raw, sizeof h);
    return ggml_fp16_to_fp32(h);
}

Scales flat(float scale, float offset) {
    Scales s{};
    s.scale[0] = scale;
    s.offset[0] = offset;
    return s;
}

// ---------------------------------------------------------------- blocks of 32: weight i shares a byte with i + 16

void put_nibbles(uint8_t *at, const uint16_t *codes) {
    for (int i = 0; i < 16; i++) at[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

void put_fifth_bits(uint8_t *at, const uint16_t *codes) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= uint32_t{codes[i]} >> 4 << i;
    std::memcpy(at, &bits, sizeof bits);
}

Scales plain_scales(const uint8_t *raw) { return flat(half_at(raw), 0); }
Scales offset_scales(const uint8_t *raw) { return flat(half_at(raw), half_at(raw + 2)); }
Scales power_scales(const uint8_t *raw) { return flat(std::ldexp(1.0F, raw[0] - 128), 0); }

void put_q4_0(uint8_t *raw, const uint16_t *codes, const uint8_t *) { put_nibbles(raw + 2, codes); }
void put_q4_1(uint8_t *raw, const uint16_t *codes, const uint8_t *) { put_nibbles(raw + 4, codes); }
void put_mxfp4(uint8_t *raw, const uint16_t *codes, const uint8_t *) { put_nibbles(raw + 1, codes); }
void put_q5_0(uint8_t *raw, const uint16_t *codes, const uint8_t *) {
    put_fifth_bits(raw + 2, codes);
    put_nibbles(raw + 6, codes);
}
void put_q5_1(uint8_t *raw, const uint16_t *codes, const uint8_t *) {
    put_fifth_bits(raw + 4, codes);
    put_nibbles(raw + 8, codes);
}
void put_q8_0(uint8_t *raw, const uint16_t *codes, const uint8_t *) {
    for (int i = 0; i < 32; i++) raw[2 + i] = static_cast<uint8_t>(codes[i] - 128);
}

// ---------------------------------------------------------------- super-blocks of 256

Scales q2_k_scales(const uint8_t *raw) {
    Scales s{};
    float const d = half_at(raw + 80);
    float const least = half_at(raw + 82);
    for (int i = 0; i < 16; i++) {
        s.scale[i] = d * static_cast<float>(raw[i] & 15);
        s.offset[i] = -least * static_cast<float>(raw[i] >> 4);
    }
    return s;
}

// Two bits of each weight: four weights that lie 32 apart share a byte.
void put_crumbs(uint8_t *at, const uint16_t *codes) {
    for (int n = 0; n < 2; n++)
        for (int l = 0; l < 32; l++) {
            const uint16_t *c = codes + 128 * n + l;
            at[32 * n + l] = static_cast<uint8_t>((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
        }
}

// A bit of each weight, `bit` of its code: eight weights that lie 32 apart share a byte.
void put_bits(uint8_t *at, const uint16_t *codes, int bit) {
    for (int l = 0; l < 32; l++) {
        int byte = 0;
        for (int n = 0; n < 8; n++) byte |= (codes[32 * n + l] >> bit & 1) << n;
        at[l] = static_cast<uint8_t>(byte);
    }
}

void put_q2_k(uint8_t *raw, const uint16_t *codes, const uint8_t *) { put_crumbs(raw + 16, codes); }

Scales q3_k_scales(const uint8_t *raw) {
    Scales s{};
    const uint8_t *packed = raw + 96;
    float const d = half_at(raw + 108);
    for (int i = 0; i < 16; i++) {
        int const low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
        int const high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        s.scale[i] = d * static_cast<float>((low | high << 4) - 32);
    }
    return s;
}

void put_q3_k(uint8_t *raw, const uint16_t *codes, const uint8_t *) {
    put_bits(raw, codes, 2);
    put_crumbs(raw + 32, codes);
}

Scales q4_k_scales(const uint8_t *raw) {
    Scales s{};
    float const d = half_at(raw);
    float const least = half_at(raw + 2);
    const uint8_t *p = raw + 4;
    for (int i = 0; i < 8; i++) {
        int const scale = i < 4 ? p[i] & 63 : (p[i + 4] & 15) | p[i - 4] >> 6 << 4;
        int const offset = i < 4 ? p[i + 4] & 63 : p[i + 4] >> 4 | p[i] >> 6 << 4;
        s.scale[i] = d * static_cast<float>(scale);
        s.offset[i] = -least * static_cast<float>(offset);
    }
    return s;
}

void put_pairs(uint8_t *at, const uint16_t *codes) { // weights that lie 32 apart share a byte
    for (int n = 0; n < 4; n++)
        for (int l = 0; l < 32; l++)
            at[32 * n + l] = static_cast<uint8_t>((codes[64 * n + l] & 15) | (codes[64 * n + 32 + l] & 15) << 4);
}

void put_q4_k(uint8_t *raw, const uint16_t *codes, const uint8_t *) { put_pairs(raw + 16, codes); }
void put_q5_k(uint8_t *raw, const uint16_t *codes, const uint8_t *) {
    put_bits(raw + 16, codes, 4);
    put_pairs(raw + 48, codes);
}

Scales q6_k_scales(const uint8_t *raw) {
    Scales s{};
    float const d = half_at(raw + 208);
    for (int i = 0; i < 16; i++) s.scale[i] = d * static_cast<float>(static_cast<int8_t>(raw[192 + i]));
    return s;
}

void put_q6_k(uint8_t *raw, const uint16_t *codes, const uint8_t *) {
    for (int n = 0; n < 2; n++)
        for (int l = 0; l < 32; l++) {
            const uint16_t *c = codes + 128 * n + l;
            raw[64 * n + l] = static_cast<uint8_t>((c[0] & 15) | (c[64] & 15) << 4);
            raw[64 * n + 32 + l] = static_cast<uint8_t>((c[32] & 15) | (c[96] & 15) << 4);
            raw[128 + 32 * n + l] =
                static_cast<uint8_t>(c[0] >> 4 | c[32] >> 4 << 2 | c[64] >> 4 << 4 | c[96] >> 4 << 6);
        }
}

Scales iq4_xs_scales(const uint8_t *raw) {
    Scales s{};
    float const d = half_at(raw);
    uint16_t high = 0;
    std::memcpy(&high, raw + 2, sizeof high);
    for (int i = 0; i < 8; i++) {
        int const scale = (raw[4 + i / 2] >> (4 * (i % 2)) & 15) | (high >> (2 * i) & 3) << 4;
        s.scale[i] = d * static_cast<float>(scale - 32);
    }
    return s;
}

void put_iq4_xs(uint8_t *raw, const uint16_t *codes, const uint8_t *) {
    for (int n = 0; n < 8; n++) put_nibbles(raw + 8 + 16 * n, codes + 32 * n);
}

// ---------------------------------------------------------------- codebooks of 8 and of 4

Scales iq2_xxs_scales(const uint8_t *raw) {
    Scales s{};
    for (int i = 0; i < 8; i++) s.scale[i] = half_at(raw) * (0.5F + static_cast<float>(raw[2 + 8 * i + 7] >> 4)) / 4;
    return s;
}

// Seven signs of each 8 weights, in bits 0, 7, 14 and 21 of the word that ends in the scale.
void put_packed_signs(uint8_t *at, const uint8_t *signs) {
    uint32_t word = uint32_t{at[3]} >> 4 << 28;
    for (int i = 0; i < 4; i++) word |= uint32_t{signs[i]} % 128 << (7 * i);
    std::memcpy(at, &word, sizeof word);
}

void put_iq2_xxs(uint8_t *raw, const uint16_t *codes, const uint8_t *signs) {
    for (int i = 0; i < 8; i++) {
        for (int l = 0; l < 4; l++) raw[2 + 8 * i + l] = static_cast<uint8_t>(codes[4 * i + l]);
        put_packed_signs(raw + 2 + 8 * i + 4, signs + 4 * i);
    }
}

Scales scales_of_16(const uint8_t *raw, const uint8_t *packed) {
    Scales s{};
    for (int i = 0; i < 16; i++)
        s.scale[i] = half_at(raw) * (0.5F + static_cast<float>(packed[i / 2] >> (4 * (i % 2)) & 15)) / 4;
    return s;
}

Scales iq2_xs_scales(const uint8_t *raw) { return scales_of_16(raw, raw + 66); }
void put_iq2_xs(uint8_t *raw, const uint16_t *codes, const uint8_t *signs) {
    for (int i = 0; i < 32; i++) {
        auto const word = static_cast<uint16_t>(codes[i] | (signs[i] & 127) << 9);
        std::memcpy(raw + 2 + 2 * i, &word, sizeof word);
    }
}

Scales iq2_s_scales(const uint8_t *raw) { return scales_of_16(raw, raw + 74); }
void put_iq2_s(uint8_t *raw, const uint16_t *codes, const uint8_t *signs) {
    for (int i = 0; i < 8; i++) {
        int high = 0;
        for (int l = 0; l < 4; l++) {
            raw[2 + 4 * i + l] = static_cast<uint8_t>(codes[4 * i + l]);
            raw[34 + 4 * i + l] = signs[4 * i + l];
            high |= codes[4 * i + l] >> 8 << (2 * l);
        }
        raw[66 + i] = static_cast<uint8_t>(high);
    }
}

Scales iq3_xxs_scales(const uint8_t *raw) {
    Scales s{};
    for (int i = 0; i < 8; i++) s.scale[i] = half_at(raw) * (0.5F + static_cast<float>(raw[66 + 4 * i + 3] >> 4)) / 2;
    return s;
}

void put_iq3_xxs(uint8_t *raw, const uint16_t *codes, const uint8_t *signs) {
    for (int i = 0; i < 64; i++) raw[2 + i] = static_cast<uint8_t>(codes[i]);
    for (int i = 0; i < 8; i++) put_packed_signs(raw + 66 + 4 * i, signs + 4 * i);
}

Scales iq3_s_scales(const uint8_t *raw) {
    Scales s{};
    for (int i = 0; i < 8; i++)
        s.scale[i] = half_at(raw) * static_cast<float>(1 + 2 * (raw[106 + i / 2] >> (4 * (i % 2)) & 15));
    return s;
}

void put_iq3_s(uint8_t *raw, const uint16_t *codes, const uint8_t *signs) {
    for (int i = 0; i < 8; i++) {
        int high = 0;
        for (int l = 0; l < 8; l++) {
            raw[2 + 8 * i + l] = static_cast<uint8_t>(codes[8 * i + l]);
            high |= codes[8 * i + l] >> 8 << l;
        }
        raw[66 + i] = static_cast<uint8_t>(high);
    }
    std::memcpy(raw + 74, signs, 32);
}

// ---------------------------------------------------------------- the table

std::vector<float> steps(int first, int n) {
    std::vector<float> values;
    for (int i = 0; i < n; i++) values.push_back(static_cast<float>(first + i));
    return values;
}

// ggml's own codebook: what it makes of a block of scale 1 with each code.
std::vector<float> codebook(ggml_type type, const BlockForm &form, uint32_t n_code) {
    std::vector<uint8_t> raw(ggml_type_size(type));
    ggml_fp16_t const one = ggml_fp32_to_fp16(1);
    std::memcpy(raw.data(), &one, sizeof one);
    std::vector<uint16_t> codes(k_most_weights / form.group);
    std::vector<uint8_t> const signs(k_most_weights / 8);
    std::vector<float> values(size_t{n_code} * form.group), out(k_most_weights);
    for (uint32_t code = 0; code < n_code; code++) {
        std::fill(codes.begin(), codes.end(), static_cast<uint16_t>(code));
        form.put(raw.data(), codes.data(), signs.data());
        ggml_get_type_traits(type)->to_float(raw.data(), out.data(), k_most_weights);
        float const scale = form.scales(raw.data()).scale[0];
        for (uint32_t i = 0; i < form.group; i++) values[code * form.group + i] = out[i] / scale;
    }
    return values;
}

std::map<int, BlockForm> make_forms() {
    std::vector<float> const curve = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    std::vector<float> const e2m1 = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
    std::vector<uint8_t> const e2m1_codes = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7};
    std::map<int, BlockForm> forms = {
        {GGML_TYPE_Q4_0, {32, 32, 1, false, steps(-8, 16), {}, plain_scales, put_q4_0}},
        {GGML_TYPE_Q4_1, {32, 32, 1, false, steps(0, 16), {}, offset_scales, put_q4_1}},
        {GGML_TYPE_Q5_0, {32, 32, 1, false, steps(-16, 32), {}, plain_scales, put_q5_0}},
        {GGML_TYPE_Q5_1, {32, 32, 1, false, steps(0, 32), {}, offset_scales, put_q5_1}},
        {GGML_TYPE_Q8_0, {32, 32, 1, false, steps(-128, 256), {}, plain_scales, put_q8_0}},
        {GGML_TYPE_IQ4_NL, {32, 32, 1, false, curve, {}, plain_scales, put_q4_0}},
        {GGML_TYPE_MXFP4, {32, 32, 1, false, e2m1, e2m1_codes, power_scales, put_mxfp4}},
        {GGML_TYPE_Q2_K, {256, 16, 1, false, steps(0, 4), {}, q2_k_scales, put_q2_k}},
        {GGML_TYPE_Q3_K, {256, 16, 1, false, steps(-4, 8), {}, q3_k_scales, put_q3_k}},
        {GGML_TYPE_Q4_K, {256, 32, 1, false, steps(0, 16), {}, q4_k_scales, put_q4_k}},
        {GGML_TYPE_Q5_K, {256, 32, 1, false, steps(0, 32), {}, q4_k_scales, put_q5_k}},
        {GGML_TYPE_Q6_K, {256, 16, 1, false, steps(-32, 64), {}, q6_k_scales, put_q6_k}},
        {GGML_TYPE_IQ4_XS, {256, 32, 1, false, curve, {}, iq4_xs_scales, put_iq4_xs}},
        {GGML_TYPE_IQ2_XXS, {256, 32, 8, true, {}, {}, iq2_xxs_scales, put_iq2_xxs}},
        {GGML_TYPE_IQ2_XS, {256, 16, 8, true, {}, {}, iq2_xs_scales, put_iq2_xs}},
        {GGML_TYPE_IQ2_S, {256, 16, 8, false, {}, {}, iq2_s_scales, put_iq2_s}},
        {GGML_TYPE_IQ3_XXS, {256, 32, 4, true, {}, {}, iq3_xxs_scales, put_iq3_xxs}},
        {GGML_TYPE_IQ3_S, {256, 32, 4, false, {}, {}, iq3_s_scales, put_iq3_s}},
    };
    for (auto const &[type, n_code] : std::map<ggml_type, uint32_t>{{GGML_TYPE_IQ2_XXS, 256},
                                                                    {GGML_TYPE_IQ2_XS, 512},
                                                                    {GGML_TYPE_IQ2_S, 1024},
                                                                    {GGML_TYPE_IQ3_XXS, 256},
                                                                    {GGML_TYPE_IQ3_S, 512}})
        forms[type].values = codebook(type, forms[type], n_code);
    return forms;
}

} // namespace

const BlockForm *form_of(int type) {
    static std::map<int, BlockForm> const forms = make_forms();
    auto const found = forms.find(type);
    return found == forms.end() ? nullptr : &found->second;
}

} // namespace emoe

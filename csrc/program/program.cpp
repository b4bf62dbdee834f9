#include "program.h"

#include <algorithm>
#include <map>

namespace srnas_fast {

void Program::lay_out() {
    for (size_t k = 0; k < candidates.size(); ++k) {
        Candidate& candidate = candidates[k];
        groups = std::max(groups, candidate.group + 1);
        const auto take = [&](int64_t count) { return (candidate.kept += count) - count; };
        for (Stage& stage : candidate.stages) {
            stage.candidate = int64_t(k);
            if (stage.norm == NormKind::none) continue;
            stage.kept.mean = take(stage.outputs);
            stage.kept.variance = take(stage.outputs);
            stage.kept.rstd = take(stage.outputs);
            if (stage.kind != StageKind::separable || stage.norm != NormKind::batch) continue;
            stage.kept.centre = take(stage.inputs);
            stage.kept.projected = take(stage.outputs * stage.inputs);
        }
    }
}

std::vector<int64_t> Program::kept_from(uint64_t live) const {
    std::vector<int64_t> from;
    int64_t count = 0;
    for (size_t k = 0; k < candidates.size(); ++k) {
        from.push_back(count);
        if (alive(live, k)) count += candidates[k].kept;
    }
    return from;
}

std::vector<int64_t> Program::members(int64_t group, uint64_t live, StageKind kind, size_t stages) const {
    std::vector<int64_t> found;
    for (size_t k = 0; k < candidates.size(); ++k) {
        const Candidate& candidate = candidates[k];
        if (alive(live, k) && candidate.group == group && candidate.stages.size() == stages &&
            candidate.stages[0].kind == kind)
            found.push_back(k);
    }
    return found;
}

std::vector<Merged> Program::merged(int64_t group, uint64_t live) const {
    std::vector<int64_t> linear, points;  // points: the middle of any other kernel
    int64_t widest = 0;                   // of the undilated ones
    for (const int64_t k : members(group, live, StageKind::dense, 1)) {
        if (first(k).norm == NormKind::batch) continue;
        linear.push_back(k);
        if (first(k).dilation == 1) widest = std::max(widest, first(k).size);
    }
    std::map<int64_t, std::vector<int64_t>> by_dilation;
    std::vector<Merged> all;
    const auto add = [&](int64_t dilation, const std::vector<int64_t>& group_members) {
        Merged merged{dilation, 1, group_members, {}};
        for (const int64_t k : group_members) {
            const Stage& stage = first(k);
            const int64_t step = stage.size > 1 ? stage.dilation / dilation : 1;
            merged.steps.push_back(step);
            merged.size = std::max(merged.size, step * (stage.size - 1) + 1);
        }
        all.push_back(merged);
    };
    if (!merge) {
        for (const int64_t k : linear) add(first(k).dilation, {k});
        return all;
    }
    for (const int64_t k : linear) {
        const Stage& stage = first(k);
        if (stage.size == 1) {
            points.push_back(k);
        } else {
            // Inside the widest undilated one: a merged kernel never costs more than its parts.
            by_dilation[stage.dilation * (stage.size - 1) < widest ? 1 : stage.dilation].push_back(k);
        }
    }
    if (!points.empty()) {
        auto& home = by_dilation[by_dilation.empty() ? 1 : by_dilation.begin()->first];
        home.insert(home.end(), points.begin(), points.end());
    }
    for (const auto& [dilation, group_members] : by_dilation) add(dilation, group_members);
    return all;
}

}  // namespace srnas_fast

"""The model `bagel_mot` of lmms-eval, which finds it by the entry point `lmms_eval.models`."""

import ml_collections
def get_config():
    return ml_collections.ConfigDict(dict(method='sleep,sequential,joint',model=dict(width=128,layers=3,heads=4,kv_heads=4,head_size=32,ff=384,unroll=3,max_len=64),stream=dict(source='biographies'),birth=dict(epochs=30,batch_rows=16),vocab_size=512,
    sleep=dict(steps=120,batch_rows=16,old_dreams=600,new_dreams=300),wake=dict(passes=6,rule='adam',lr=(1e-3,)),memory=dict(periods=(512,))))
